"""The values of a run's keys in sections, and what follows from them.

Every key of ``[tool.flwr.app.config]`` is a field of a section or of a strategy's settings, in kebab-case. Of the keys
of the recipe and of the strategies, and of two of private training, ``"auto"`` means "what the strategy's settings (or
the dataset) say".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, create_model
from pydantic.fields import FieldInfo

from fedsynth.config.data import Data
from fedsynth.config.evaluation import Evaluation
from fedsynth.config.keys import Section, parse
from fedsynth.config.methods import SETTINGS, DPSumSettings, StrategySettings
from fedsynth.config.privacy import BY_STRATEGY, Privacy, privacy_defaults
from fedsynth.config.recipe import Recipe, recipe_defaults
from fedsynth.config.run import Cooperation, Exchange, Replicas, Run
from fedsynth.config.training import Model, Sampling, Training
from fedsynth.config.types import AUTO, NONE, Auto, Scalar


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


DECLARED = _declared_settings()
"""Every field of the strategies' settings, with the class that declares it."""

if TYPE_CHECKING:
    StrategyKeys = Section
    RecipeKeys = Section
    PrivacyKeys = Privacy
else:
    StrategyKeys = create_model(
        "StrategyKeys", __base__=Section, **{name: _or_auto(info) for name, (_, info) in DECLARED.items()}
    )
    RecipeKeys = create_model(
        "RecipeKeys", __base__=Section, **{name: _or_auto(info) for name, info in Recipe.model_fields.items()}
    )
    PrivacyKeys = create_model(
        "PrivacyKeys", __base__=Privacy, **{name: _or_auto(Privacy.model_fields[name]) for name in BY_STRATEGY}
    )


class RunValues(BaseModel):
    """The values of all keys, in sections, and what follows from them; frozen, and not checked against each other.

    Attributes:
        privacy_keys: the keys of private training, some of them ``"auto"``; see :attr:`privacy`.
        recipe_keys: the keys of the recipe, ``"auto"`` if nobody chose; see :attr:`recipe`.
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

    def to_run_config(self) -> dict[str, Scalar]:
        """Return the flat mapping of all keys."""
        flat: dict[str, Scalar] = {}
        for _, section in self:
            if isinstance(section, Section):
                flat |= section.model_dump(by_alias=True)
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
    def num_aggregators(self) -> int:
        """Nodes that hold no images and aggregate."""
        return self.replicas.num_aggregators if self.replicas.aggregators == "nodes" else 0

    @property
    def num_nodes(self) -> int:
        """Flower nodes of the run: silos, and aggregators that are none."""
        return self.run.num_clients + self.num_aggregators

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
