"""Run configuration: the flat mapping that Flower hands to an app becomes frozen, validated objects, once.

Every key of ``[tool.flwr.app.config]`` is a field of one of the sections, in kebab-case. ``"auto"`` means "what the
strategy's constructor (or the dataset) says"; :meth:`RunConfig.resolve` fills it in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from fedsynth.config.methods import Averaging, Cooperation
from fedsynth.config.sections import (
    SECTIONS,
    Data,
    Diffusion,
    Evaluation,
    Exchange,
    Model,
    Run,
    Sampling,
    Training,
)
from fedsynth.config.types import (
    AUTO,
    REAL_SILOS,
    Auto,
    Scalar,
    Section,
)
from fedsynth.errors import UserError, did_you_mean, unknown_choice

_NO_SUCH_WORD = ("literal_error", "string_pattern_mismatch")


class RunConfig(BaseModel):
    """Everything a run depends on, in sections; frozen.

    Attributes:
        resolved: kebab-case keys that were ``"auto"`` and have been filled in.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: Run = Run()
    data: Data = Data()
    model: Model = Model()
    training: Training = Training()
    diffusion: Diffusion = Diffusion()
    sampling: Sampling = Sampling()
    averaging: Averaging = Averaging()
    cooperation: Cooperation = Cooperation()
    exchange: Exchange = Exchange()
    evaluation: Evaluation = Evaluation()
    resolved: tuple[str, ...] = ()

    @classmethod
    def from_run_config(cls, mapping: Mapping[str, Scalar]) -> RunConfig:
        """Parse a flat mapping of kebab-case keys; absent keys take their default.

        Raises:
            UserError: unknown key, wrong type, value out of range, or a contradiction between keys. The message
                names the key, the value, what is allowed, and the nearest match of a misspelt word.
        """
        keys = {key: section for key, section, _ in config_keys()}
        for key in mapping:
            if key not in keys:
                raise UserError(f"unknown config key '{key}'{did_you_mean(key, keys)}")
        parsed = {name: _parse(section, mapping, keys, name) for name, section in SECTIONS.items()}
        config = cls(**parsed)
        _refuse_contradictions(config)
        return config

    def to_run_config(self) -> dict[str, Scalar]:
        """Return the flat mapping of all keys; ``from_run_config`` is its inverse."""
        flat: dict[str, Scalar] = {}
        for name in SECTIONS:
            flat |= getattr(self, name).model_dump(by_alias=True)
        return flat

    def resolve(self, defaults: Mapping[str, Scalar]) -> RunConfig:
        """Fill in the keys that are still ``"auto"``; values the user gave stay.

        Args:
            defaults: values by kebab-case key.
        """
        flat = self.to_run_config()
        filled = {key: value for key, value in defaults.items() if flat[key] == AUTO}
        config = RunConfig.from_run_config({**flat, **filled})
        return config.model_copy(update={"resolved": tuple(sorted({*self.resolved, *filled}))})


def config_keys() -> Iterator[tuple[str, str, FieldInfo]]:
    """Yield (kebab-case key, section name, field) for every configuration key, in order."""
    for name, section in SECTIONS.items():
        for field, info in section.model_fields.items():
            yield field.replace("_", "-"), name, info


def _parse(section: type[Section], mapping: Mapping[str, Scalar], keys: Mapping[str, str], name: str) -> Section:
    try:
        return section.model_validate({k: v for k, v in mapping.items() if keys[k] == name})
    except ValidationError as error:
        raise _as_user_error(error) from None


def _as_user_error(error: ValidationError) -> UserError:
    """Say the first violation in the user's words: key = value, then what is allowed."""
    details = error.errors()[0]
    if not details["loc"]:
        return UserError(str(details["ctx"]["error"]))
    key, value = str(details["loc"][0]), details["input"]
    messages = [d for d in error.errors() if d["loc"][0] == details["loc"][0]]
    choices = _choices(key)
    if choices and isinstance(value, str) and all(d["type"] in _NO_SUCH_WORD for d in messages):
        return unknown_choice(key, value, choices)
    # Words are what is asked for: that "module:name" is text too helps nobody who wrote something else.
    said = " or ".join(str(d["msg"]) for d in messages if not (choices and d["type"] == "string_type"))
    allowed = said.replace("Input should be ", "").replace("String should have", "text of")
    return UserError(f"{key} = {value!r}: must be {allowed}")


def _choices(key: str) -> list[str]:
    """Return the words a key can take, if its type lists any."""
    return _words(next(info.annotation for name, _, info in config_keys() if name == key))


def _words(annotation: Any) -> list[str]:
    parts = get_args(annotation)
    return [word for part in parts for word in ([part] if isinstance(part, str) else _words(part))]


def _refuse_contradictions(config: RunConfig) -> None:
    cooperation, sampler = config.cooperation, config.sampling.sampler
    paper = cooperation.dfd_preset == "paper"
    langevin = sampler == "ula" or (sampler == AUTO and paper)
    if cooperation.weights == "posterior" and (langevin or sampler in ("ddim", "dpmsolver++")):
        raise UserError(
            "weights = 'posterior' needs sampler = 'ddpm' or 'sde-dpmsolver++', whose paths it follows: with sampler ="
            f" '{'ula' if langevin else sampler}' set weights = 'energy' or 'constant'"
        )
    if not langevin and cooperation.score_scale not in (AUTO, 1.0):
        raise UserError(f"score-scale = {cooperation.score_scale} needs sampler = 'ula': otherwise set it to 1.0")
    c, temperature = cooperation.step_scale, cooperation.score_scale
    if c != AUTO and temperature != AUTO and c * temperature >= 2:
        raise UserError(f"score-scale = {temperature}: must be < {2 / c:g}, 2 / step-scale, or samples diverge")
    if sampler == "ula" and config.run.strategy != "dfd":
        raise UserError(f"sampler = 'ula' needs strategy = 'dfd', not '{config.run.strategy}': use sampler = 'ddpm'")
    if config.data.dataset == REAL_SILOS and config.run.strategy == "centralised":
        raise UserError("strategy = 'centralised' works in simulation only: real silos do not show their images")
    if config.training.mixed_precision == "bf16" and config.run.device == "cpu":
        raise UserError("mixed-precision = 'bf16' needs CUDA: set device = 'auto' or 'cuda', or mixed-precision = 'no'")
    _refuse_too_many_levels(config)
    if config.exchange.min_replies != AUTO and config.exchange.min_replies > config.run.num_clients:
        raise UserError(
            f"min-replies = {config.exchange.min_replies}: must be <= num-clients = {config.run.num_clients}"
        )


def _refuse_too_many_levels(config: RunConfig) -> None:
    levels = config.diffusion.num_train_timesteps
    steps: dict[str, int | Auto] = {
        "sampling-steps": config.sampling.sampling_steps,
        "dfd-rounds": config.cooperation.dfd_rounds,
    }
    for key, value in steps.items():
        if value != AUTO and value > levels:
            raise UserError(f"{key} = {value}: must be <= num-train-timesteps = {levels}")
    rounds = config.run.num_rounds
    if rounds != AUTO and rounds > config.training.train_steps:
        raise UserError(f"num-rounds = {rounds}: must be <= train-steps = {config.training.train_steps}")
