"""Run configuration: the flat mapping that Flower hands to an app becomes frozen, validated objects, once.

Every key of ``[tool.flwr.app.config]`` is a field of a section or of a strategy's settings, in kebab-case. ``"auto"``
means "what the strategy's settings (or the dataset) say"; :meth:`RunConfig.resolve` fills it in.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, create_model
from pydantic.fields import FieldInfo

from fedsynth.config.data import Data
from fedsynth.config.evaluation import Evaluation
from fedsynth.config.keys import Key, Section, facts_of, kebab, one_of_words, parse
from fedsynth.config.methods import (
    SETTINGS,
    AveragingSettings,
    DfDSettings,
    DPSumSettings,
    FedDDPMSettings,
    FedDiffuseSettings,
    StrategySettings,
)
from fedsynth.config.privacy import BY_STRATEGY, Privacy, privacy_defaults
from fedsynth.config.recipe import Recipe, recipe_defaults, shared_defaults
from fedsynth.config.run import Cooperation, Exchange, Replicas, Run
from fedsynth.config.training import LORA, Model, Sampling, Training
from fedsynth.config.types import (
    AUTO,
    FEW_LABELS,
    LEAST_SILOS,
    MEANS,
    NONE,
    OWN_MODELS,
    REAL_SILOS,
    SUMMED_UPDATES,
    WITH_ADAPTERS,
    WITH_BASE_MODEL,
    Auto,
    Scalar,
)
from fedsynth.errors import UserError, did_you_mean
from fedsynth.plugins import is_plugin


def _declared_settings() -> dict[str, tuple[type[StrategySettings], FieldInfo]]:
    """Return every field of the strategies' settings, with the class that declares it."""
    bases = [cls for settings in SETTINGS.values() for cls in reversed(settings.__mro__)]
    found: dict[str, tuple[type[StrategySettings], FieldInfo]] = {}
    for cls in dict.fromkeys(cls for cls in bases if issubclass(cls, StrategySettings)):
        for name, info in cls.model_fields.items():
            found.setdefault(name, (cls, info))
    return found


def _or_auto(info: FieldInfo) -> Any:
    """Return a field of the recipe or of a strategy's settings as it stands in the flat configuration."""
    own = Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation
    flat = Field(AUTO, description=info.description, json_schema_extra=info.json_schema_extra)
    return Auto | own, flat


_DECLARED = _declared_settings()

if TYPE_CHECKING:
    StrategyKeys = Section
    RecipeKeys = Section
    PrivacyKeys = Privacy
else:
    StrategyKeys = create_model(
        "StrategyKeys", __base__=Section, **{name: _or_auto(info) for name, (_, info) in _DECLARED.items()}
    )
    RecipeKeys = create_model(
        "RecipeKeys", __base__=Section, **{name: _or_auto(info) for name, info in Recipe.model_fields.items()}
    )
    PrivacyKeys = create_model(
        "PrivacyKeys",
        __base__=Privacy,
        **{name: _or_auto(Privacy.model_fields[name]) for name in BY_STRATEGY},
    )


class RunConfig(BaseModel):
    """Everything a run depends on, in sections; frozen.

    Attributes:
        recipe_keys: the keys of the recipe, ``"auto"`` if nobody chose; see :attr:`recipe`.
        privacy_keys: the keys of private training, some of them ``"auto"``; see :attr:`privacy`.
        strategy_keys: the keys of all strategies' settings, ``"auto"`` if nobody chose; see :attr:`settings`.
        resolved: kebab-case keys that were ``"auto"`` and have been filled in.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: Run = Run()
    data: Data = Data()
    model: Model = Model()
    training: Training = Training()
    privacy_keys: PrivacyKeys = PrivacyKeys()
    recipe_keys: RecipeKeys = RecipeKeys()
    sampling: Sampling = Sampling()
    strategy_keys: StrategyKeys = StrategyKeys()
    cooperation: Cooperation = Cooperation()
    replicas: Replicas = Replicas()
    exchange: Exchange = Exchange()
    evaluation: Evaluation = Evaluation()
    resolved: tuple[str, ...] = ()

    @classmethod
    def from_run_config(cls, mapping: Mapping[str, Scalar]) -> RunConfig:
        """Parse a flat mapping of kebab-case keys; absent keys take their default.

        Raises:
            UserError: unknown key, wrong type, value out of range, a key that does not act beside the others, or a
                contradiction between keys. The message names the key, the value, what is allowed, and the nearest
                match of a misspelt word.
        """
        for name in mapping:
            if name not in KEYS:
                raise UserError(f"unknown config key '{name}'{did_you_mean(name, KEYS)}")
        parsed = {
            section: parse(kind, {name: value for name, value in mapping.items() if KEYS[name].section == section})
            for section, kind in SECTIONS.items()
        }
        config = cls.model_validate(parsed)
        flat = config.to_run_config()
        for why in idle_keys(flat).values():
            raise UserError(why)
        _refuse_contradictions(config)
        return config

    def to_run_config(self) -> dict[str, Scalar]:
        """Return the flat mapping of all keys; ``from_run_config`` is its inverse."""
        flat: dict[str, Scalar] = {}
        for name in SECTIONS:
            flat |= getattr(self, name).model_dump(by_alias=True)
        return flat

    @property
    def recipe(self) -> Recipe:
        """The training recipe, without any ``"auto"``."""
        flat = self.to_run_config()
        defaults = recipe_defaults(flat)
        chosen = {name: flat[name] for name in defaults if flat[name] != AUTO}
        return parse(Recipe, {**defaults, **chosen})

    @property
    def privacy(self) -> Privacy:
        """The keys of private training, without any ``"auto"``."""
        keys = self.privacy_keys.model_dump(by_alias=True)
        defaults = privacy_defaults(self.run.strategy)
        return parse(Privacy, {**keys, **{name: value for name, value in defaults.items() if keys[name] == AUTO}})

    @property
    def private(self) -> bool:
        """Whether silos train with differential privacy."""
        return self.privacy_keys.dp_epsilon != NONE

    @property
    def secure_sums(self) -> bool:
        """Whether the server sees sums of the silos' answers, and no single one."""
        return self.cooperation.secure_aggregation or isinstance(self.settings, DPSumSettings)

    @property
    def replicated(self) -> bool:
        """Whether others than the server combine the silos' updates."""
        return self.replicas.aggregators != "server"

    @property
    def own_steps(self) -> int:
        """Optimiser steps of a silo's own model."""
        return self.privacy.dp_steps if self.private else self.training.own_steps

    @property
    def train_steps(self) -> int:
        """Optimiser steps of a silo over all rounds of an averaging strategy."""
        return self.privacy.dp_steps if self.private else self.training.train_steps

    @property
    def simulated_count_noise(self) -> float:
        """Scale of the noise of simulated silos' counts: never none in a private run."""
        return self.exchange.label_count_noise or (1.0 if self.private else 0.0)

    @property
    def settings(self) -> StrategySettings:
        """The chosen strategy's settings, without any ``"auto"``; a plug-in's as far as all strategies have them."""
        return SETTINGS.get(self.run.strategy, StrategySettings).complete(self.to_run_config())

    def resolve(self, defaults: Mapping[str, Scalar]) -> RunConfig:
        """Fill in the keys that are still ``"auto"``; values the user gave stay.

        Args:
            defaults: values by kebab-case key.
        """
        flat = self.to_run_config()
        filled = {key: value for key, value in defaults.items() if flat[key] == AUTO}
        config = RunConfig.from_run_config({**flat, **filled})
        return config.model_copy(update={"resolved": tuple(sorted({*self.resolved, *filled}))})


SECTIONS: dict[str, type[Section]] = {
    name: info.annotation
    for name, info in RunConfig.model_fields.items()
    if isinstance(info.annotation, type) and issubclass(info.annotation, Section)
}


def _docstring(kind: type[Any]) -> str:
    """Return what a class says of itself, also where ``python -OO`` has dropped it."""
    if kind.__doc__:
        return kind.__doc__
    (definition,) = ast.parse(inspect.getsource(kind)).body
    return (isinstance(definition, ast.ClassDef) and ast.get_docstring(definition)) or ""


def _keys() -> Iterator[Key]:
    for section, kind in SECTIONS.items():
        for field, info in kind.model_fields.items():
            facts, group, acts_with = facts_of(info), kind, dict[str, tuple[Scalar, ...]]()
            if kind is StrategyKeys:
                group = _DECLARED[field][0]
                takers = tuple(strategy for strategy, settings in SETTINGS.items() if field in settings.model_fields)
                acts_with |= {"strategy": takers} if len(takers) < len(SETTINGS) else {}
            if kind is RecipeKeys:
                group = Recipe
            if kind is PrivacyKeys:
                group = Privacy
            heading = _docstring(group).splitlines()[0].removesuffix(".")
            commands = facts.commands or group.commands
            yield Key(kebab(field), section, heading, info, commands, {**acts_with, **facts.acts_with})


KEYS: dict[str, Key] = {key.name: key for key in _keys()}
"""Every configuration key by name, in order."""


def keys_of(command: str) -> frozenset[str]:
    """Return the names of the keys that a command besides ``run`` and ``sweep`` takes."""
    return frozenset(name for name, key in KEYS.items() if command in key.commands)


def idle_keys(flat: Mapping[str, Scalar]) -> dict[str, str]:
    """Return the keys that were given and do not act beside the others, with the sentence that refuses each.

    Given means: not at its default, which for a key of the chosen strategy is ``"auto"`` or that strategy's own.

    Args:
        flat: values of any keys, each valid by itself; absent keys have their default.
    """
    values = {name: flat.get(name, key.default) for name, key in KEYS.items()}
    settings = SETTINGS.get(str(values["strategy"]), StrategySettings)
    own = {kebab(field): info.default for field, info in settings.model_fields.items()} | shared_defaults(values)
    defaults = settings.defaults(values) | shared_defaults(values)
    acting = {**values, **{name: default for name, default in defaults.items() if values[name] == AUTO}}
    # Which settings a plug-in takes, and what their defaults are, its class says when it is built.
    known = [
        key for key in KEYS.values() if not (key.section == "strategy_keys" and is_plugin(str(values["strategy"])))
    ]
    return {
        key.name: why
        for key in known
        if values[key.name] not in (key.default, own.get(key.name, key.default))
        and (why := key.why_idle(values[key.name], acting))
    }


def without_idle_keys(flat: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Return the values whose keys act; the strategy, dataset, partition and sampler decide which do."""
    idle = idle_keys(flat)
    return {name: value for name, value in flat.items() if name not in idle}


def _refuse_contradictions(config: RunConfig) -> None:
    run, flat = config.run, config.to_run_config()
    flat |= {"num-train-timesteps": config.recipe.num_train_timesteps, "dp-steps": config.privacy.dp_steps}
    if not is_plugin(run.strategy):
        _ = config.settings  # which refuses values that do not go together
    if config.cooperation.secure_aggregation:
        _refuse_single_answers(config)
    _refuse_what_is_not_private(config)
    if config.replicated:
        _refuse_what_is_not_replicated(config)
    steps = "dp-steps" if config.private else "train-steps"
    limits = {"sampling-steps": "num-train-timesteps", "dfd-rounds": "num-train-timesteps", "num-rounds": steps}
    for name, other in limits.items():
        value, limit = flat[name], flat[other]
        if isinstance(value, int) and isinstance(limit, int) and value > limit:
            raise UserError(f"{name} = {value}: must be <= {other} = {limit}")
    _refuse_with_base_model(config)
    if config.recipe.codec == "autoencoder" and not (config.model.autoencoder or config.model.base_model):
        raise UserError("codec = 'autoencoder' needs an autoencoder: set autoencoder to the folder of one")
    if config.data.dataset == REAL_SILOS:
        _refuse_at_real_silos(run.strategy)
    if config.training.mixed_precision == "bf16" and run.device == "cpu":
        raise UserError("mixed-precision = 'bf16' needs CUDA: set device = 'auto' or 'cuda', or mixed-precision = 'no'")
    if config.exchange.min_replies != AUTO and config.exchange.min_replies > run.num_clients:
        raise UserError(f"min-replies = {config.exchange.min_replies}: must be <= num-clients = {run.num_clients}")


def _refuse_at_real_silos(strategy: str) -> None:
    """Refuse strategies that are for simulated silos alone."""
    reasons = {"centralised": "real silos do not show their images"} | dict.fromkeys(
        FEW_LABELS, "no policy says yet what a real silo would tell of its confusions and pseudo-labels"
    )
    if strategy in reasons:
        raise UserError(f"strategy = '{strategy}' works in simulation only: {reasons[strategy]}")


def _refuse_with_base_model(config: RunConfig) -> None:
    """Refuse what a base model is not built for."""
    model, strategy = config.model, config.run.strategy
    if not model.base_model:
        return
    adapted = model.train == LORA
    remedy = f"choose {one_of_words(WITH_ADAPTERS if adapted else WITH_BASE_MODEL)}"
    if not adapted and strategy in WITH_ADAPTERS:
        remedy = f"set train = '{LORA}', or {remedy}"
    not_built = {
        f"strategy = '{strategy}'": (strategy not in (WITH_ADAPTERS if adapted else WITH_BASE_MODEL), remedy),
        f"dp-epsilon = {config.privacy.dp_epsilon}": (config.private, "leave it out"),
        "secure-aggregation = true": (config.cooperation.secure_aggregation, "set it to false"),
        f"aggregators = '{config.replicas.aggregators}'": (config.replicated, "set it to 'server'"),
        f"generator-steps = {config.sampling.generator_steps}": (config.sampling.generator_steps > 0, "set it to 0"),
        f"codec = '{config.recipe.codec}'": (config.recipe.codec not in (AUTO, "autoencoder"), "leave it out"),
    }
    for given, (found, remedy) in not_built.items():
        if found:
            raise UserError(f"{given} with a base-model: that is not built; {remedy}")
    guidance, settings = config.sampling.guidance, config.settings
    if guidance > 1 and isinstance(settings, DfDSettings) and settings.weights == "energy":
        raise UserError(
            f"weights = 'energy' with guidance = {guidance}: a guided prediction lies further from the noise than the"
            " network's own, so that its distance says nothing of the silo; set weights = 'posterior' or 'constant', or"
            " guidance = 1"
        )
    if adapted and isinstance(config.settings, AveragingSettings):
        _refuse_unsound_factors(config.settings, strategy)


def _refuse_unsound_factors(settings: AveragingSettings, strategy: str) -> None:
    """Refuse to treat the factors of adapters as weights: many pairs of them have one product, which alone counts."""
    aggregation = settings.lora_aggregation
    if aggregation == "freeze-a":
        return
    if strategy not in MEANS:
        raise UserError(
            f"lora-aggregation = '{aggregation}' with strategy = '{strategy}': many factors B and A have one product,"
            " so that their medians, distances and steps one by one say nothing of it; set lora-aggregation ="
            " 'freeze-a', where all silos have one A, or strategy = 'fedavg'"
        )
    if settings.sample_from == "ema":
        raise UserError(
            f"sample-from = 'ema' with lora-aggregation = '{aggregation}': the moving average of factors is not that of"
            " their products; set sample-from = 'raw', or lora-aggregation = 'freeze-a'"
        )


def _refuse_single_answers(config: RunConfig) -> None:
    """Refuse what a server cannot do that sees sums only."""
    strategy, settings, num_clients = config.run.strategy, config.settings, config.run.num_clients
    if is_plugin(strategy):
        raise UserError(
            f"strategy = '{strategy}' with secure-aggregation = true: whether sums are enough for it is not known;"
            " choose another strategy, or set secure-aggregation = false"
        )
    if isinstance(settings, FedDDPMSettings):
        raise UserError(
            f"strategy = '{strategy}' with secure-aggregation = true: every silo uploads a model of its own, which the"
            " server sees; set strategy = 'fedavg', or secure-aggregation = false"
        )
    if isinstance(settings, AveragingSettings) and strategy not in SUMMED_UPDATES:
        raise UserError(
            f"strategy = '{strategy}' with secure-aggregation = true: its rule compares the silos' single answers,"
            " which the server does not see; set strategy = 'fedavg', or secure-aggregation = false"
        )
    if isinstance(settings, AveragingSettings) and settings.fraction_train < 1:
        raise UserError(
            f"fraction-train = {settings.fraction_train} with secure-aggregation = true: the sums of two rounds, with"
            " and without a silo, would differ by its answer; set fraction-train = 1"
        )
    if isinstance(settings, DfDSettings) and settings.weights != "constant":
        raise UserError(
            f"weights = '{settings.weights}' with secure-aggregation = true: they are computed from every silo's single"
            " answer, which the server does not see; set weights = 'constant'"
        )
    if isinstance(settings, DfDSettings) and settings.parallel_levels > 1:
        raise UserError(
            f"parallel-levels = {settings.parallel_levels} with secure-aggregation = true: a silo answers about a"
            " timestep once in a run, not about guesses of it; set parallel-levels = 1"
        )
    if num_clients < LEAST_SILOS:
        raise UserError(
            f"num-clients = {num_clients} with secure-aggregation = true: must be >= {LEAST_SILOS}, of two silos each"
            " knows the other's answer from the sum"
        )
    halves = isinstance(settings, FedDiffuseSettings) and settings.feddiffuse_method == "usplit"
    if halves and num_clients < 2 * LEAST_SILOS:
        raise UserError(
            f"num-clients = {num_clients} with feddiffuse-method = 'usplit' and secure-aggregation = true: must be >="
            f" {2 * LEAST_SILOS}, {LEAST_SILOS} for each half of the network; set feddiffuse-method = 'full'"
        )


def _refuse_what_is_not_replicated(config: RunConfig) -> None:
    """Refuse what no certificate would speak of."""
    given = f"aggregators = '{config.replicas.aggregators}'"
    if config.cooperation.secure_aggregation:
        raise UserError(
            f"secure-aggregation = true with {given}: aggregators check every single update; set one of the two"
        )
    if config.exchange.wire_dtype != "float32":
        raise UserError(
            f"wire-dtype = '{config.exchange.wire_dtype}' with {given}: what travels must be what is certified, bit for"
            " bit; set wire-dtype = 'float32'"
        )
    if isinstance(config.settings, AveragingSettings) and config.settings.sample_from == "ema":
        raise UserError(
            f"sample-from = 'ema' with {given}: only the weights of each round are certified, not their moving average;"
            " set sample-from = 'raw'"
        )
    settings = config.settings
    if isinstance(settings, FedDiffuseSettings) and settings.feddiffuse_method in ("ulatdec", "udec"):
        raise UserError(
            f"feddiffuse-method = '{settings.feddiffuse_method}' with {given}: the silos' own encoders, with which they"
            " draw, are in no certificate; set feddiffuse-method = 'usplit' or 'full'"
        )
    if config.data.dataset == REAL_SILOS and not config.replicas.key_file:
        raise UserError(
            f"{given} needs key-file, the silo-keys.json that every silo has: 'fedsynth link keys' makes it"
        )


def _refuse_what_is_not_private(config: RunConfig) -> None:
    """Refuse what dp-epsilon does not cover, and what needs it."""
    if not config.private:
        if isinstance(config.settings, DPSumSettings):
            raise UserError(
                "strategy = 'dp-sum' needs dp-epsilon, from which its noise follows: set dp-epsilon = 10, for instance,"
                " or strategy = 'fedavg'"
            )
        return
    strategy, given = config.run.strategy, f"dp-epsilon = {config.privacy.dp_epsilon}"
    if strategy == "centralised":
        raise UserError(
            f"{given}: strategy = 'centralised' trains on all images at the server; choose another strategy"
        )
    if strategy == "fedddpm-plus":
        raise UserError(
            f"{given}: strategy = 'fedddpm-plus' acts on the silos' losses, which would tell of their images; set"
            " strategy = 'fedddpm'"
        )
    if strategy in FEW_LABELS:
        raise UserError(
            f"{given}: strategy = '{strategy}' has silos train classifiers and count confusions outside of it; choose"
            " another strategy"
        )
    known = isinstance(config.settings, AveragingSettings | DPSumSettings)
    if not (strategy in OWN_MODELS or known) or is_plugin(strategy):
        raise UserError(f"{given}: what strategy = '{strategy}' has silos train is not known; choose another strategy")
    if config.evaluation.evaluate_silos:
        raise UserError(
            f"{given}: evaluate-silos = true has silos measure their images outside of it; set evaluate-silos = false"
        )
