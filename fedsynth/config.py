"""Run configuration: the flat mapping that Flower hands to an app becomes frozen, validated objects, once.

Every key of ``[tool.flwr.app.config]`` is a field of one of the sections below, in kebab-case. ``"auto"`` means
"what the strategy's constructor (or the dataset) says"; :meth:`RunConfig.resolve` fills it in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from fedsynth.errors import UserError, did_you_mean, unknown_choice

Scalar = str | int | float | bool
Auto = Literal["auto"]
AUTO: Auto = "auto"

StrategyName = Literal["fedavg", "dfd", "pooled", "centralised"]
DatasetName = Literal["digits", "mnist", "fashion-mnist", "cifar10", "celeba", "imagefolder"]
PartitionName = Literal["iid", "dirichlet", "power-law", "pathological", "pairs", "disjoint"]
PresetName = Literal["digits", "small", "mnist", "cifar10", "celeba"]
SamplerName = Literal["ddpm", "ula"]

Positive = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        alias_generator=lambda name: name.replace("_", "-"),
        populate_by_name=True,
    )


class Run(_Section):
    """What is run, where it writes and how it is repeated."""

    strategy: StrategyName = Field("dfd", description="how the silos cooperate")
    seed: int = Field(0, ge=0, description="everything random follows from it")
    num_clients: Positive = Field(10, description="number of silos")
    num_rounds: Positive | Auto = Field(AUTO, description="rounds of an averaging strategy")
    output_dir: str = Field("runs", description="folder that receives one folder a run")
    run_name: str = Field(AUTO, min_length=1, description="name of the run folder; auto: time-strategy-dataset-seed")
    state_dir: str = Field(".fedsynth", description="where simulated silos keep their local models")
    device: Literal["auto", "cpu", "cuda"] = Field(AUTO, description="auto: CUDA when a process sees it")


class Data(_Section):
    """The images and how simulated silos share them."""

    dataset: DatasetName = Field("digits", description="images of a simulated run")
    data_root: str = Field("", description="folder that holds the dataset (not needed for digits)")
    download: bool = Field(False, description="let torchvision fetch a dataset that data-root lacks")
    image_size: Positive | Auto = Field(AUTO, description="side in pixels; auto: the dataset's own")
    skip_bad_images: bool = Field(False, description="leave out unreadable files instead of refusing the folder")
    partition: PartitionName = Field("dirichlet", description="how labels spread over simulated silos")
    alpha: PositiveFloat = Field(0.1, description="Dirichlet concentration; smaller is more uneven")
    classes_per_client: Positive = Field(3, description="distinct classes a silo under partition=pathological")
    samples_per_client: int = Field(0, ge=0, description="mean images a silo; 0: all")
    holdout_fraction: float = Field(0.1, ge=0, lt=1, description="share of a silo's images never trained on")


class Model(_Section):
    """The U-Net."""

    model: PresetName | Auto = Field(AUTO, description="U-Net preset; auto: the dataset's")
    block_out_channels: str = Field(AUTO, description="channels a level, such as '32,64,64'; auto: the preset's")
    layers_per_block: Positive | Auto = Field(AUTO, description="residual layers a level; auto: the preset's")

    @model_validator(mode="after")
    def _channels_are_numbers(self) -> Model:
        self.channels()
        return self

    def channels(self) -> tuple[int, ...] | None:
        """``block-out-channels`` as numbers, or None for the preset's."""
        if self.block_out_channels == AUTO:
            return None
        try:
            channels = tuple(int(word) for word in self.block_out_channels.split(","))
        except ValueError:
            channels = ()
        if not channels or any(c < 4 or c % 4 for c in channels):
            raise ValueError(
                f"block-out-channels = '{self.block_out_channels}': must be multiples of 4, such as '32,64'"
            )
        return channels


class Training(_Section):
    """Local training of one silo."""

    train_steps: Positive = Field(900, description="optimiser steps a silo over the whole run, whatever the strategy")
    batch_size: Positive = Field(32, description="images a step")
    learning_rate: PositiveFloat = Field(2e-4, description="Adam's")
    ema_decay: float = Field(0.995, ge=0, lt=1, description="decay of the weight average, after its warm-up")
    max_grad_norm: PositiveFloat = Field(1.0, description="gradients are clipped to this norm")
    mixed_precision: Literal["no", "bf16"] = Field("no", description="bf16: autocast, on CUDA only")


class Diffusion(_Section):
    """The noise schedule (linear, Ho et al. 2020)."""

    num_train_timesteps: Positive = Field(1000, description="noise levels T")
    beta_start: float = Field(1e-4, gt=0, lt=1, description="first beta")
    beta_end: float = Field(0.02, gt=0, lt=1, description="last beta")

    @model_validator(mode="after")
    def _ends_in_noise(self) -> Diffusion:
        if self.beta_end <= self.beta_start:
            raise ValueError(f"beta-end = {self.beta_end}: must be > beta-start = {self.beta_start}")
        last = self.last_alpha_cumprod()
        if last > 0.01:
            raise ValueError(
                f"num-train-timesteps = {self.num_train_timesteps} leaves {last:.2f} of the signal's variance at the"
                " last level (at most 0.01 is allowed, since sampling starts from pure noise):"
                " raise num-train-timesteps or beta-end"
            )
        return self

    def last_alpha_cumprod(self) -> float:
        """ᾱ_T, the share of the signal's variance left at the last noise level."""
        steps = max(self.num_train_timesteps - 1, 1)
        product = 1.0
        for t in range(self.num_train_timesteps):
            product *= 1 - (self.beta_start + (self.beta_end - self.beta_start) * t / steps)
        return product


class Sampling(_Section):
    """The synthetic set and how it is drawn."""

    num_samples: Positive = Field(1000, description="images in the synthetic set")
    labels: Literal["balanced", "observed"] = Field("balanced", description="label frequencies of the synthetic set")
    sampler: SamplerName | Auto = Field(AUTO, description="how samples move between noise levels")
    sampling_steps: Positive = Field(25, description="noise levels visited when one model is sampled")
    sample_from: Literal["auto", "raw", "ema"] = Field(AUTO, description="weights an averaging strategy samples from")
    server_ema_decay: Annotated[float, Field(ge=0, lt=1)] | Auto = Field(
        AUTO, description="weight of the past in the average over rounds (sample-from=ema)"
    )


class Cooperation(_Section):
    """Cooperative inference (strategy dfd)."""

    dfd_preset: Literal["default", "paper"] = Field("default", description="what the auto keys of dfd resolve to")
    dfd_rounds: Positive | Auto = Field(AUTO, description="noise levels visited, one round each")
    prior: Literal["auto", "uniform", "size", "class"] = Field(AUTO, description="prior weight of a silo")
    weights: Literal["auto", "constant", "energy", "posterior"] = Field(
        AUTO, description="what moves the prior: nothing, the energy (paper) or the path"
    )
    energy_scale: Annotated[float, Field(ge=0)] | Auto = Field(AUTO, description="lambda in the energy weights")
    score_scale: PositiveFloat | Auto = Field(AUTO, description="lambda in the score, a temperature (sampler=ula)")
    step_scale: Annotated[float, Field(gt=0, le=0.5)] | Auto = Field(
        AUTO, description="c of the Langevin step size (sampler=ula)"
    )
    step_power: Annotated[float, Field(ge=1)] | Auto = Field(AUTO, description="p of the Langevin step size")


class Exchange(_Section):
    """Messages between server and silos."""

    wire_dtype: Literal["float32", "float16"] = Field("float32", description="precision of tensors on the wire")
    node_timeout: PositiveFloat = Field(120.0, description="seconds to wait for num-clients silos to connect")
    reply_timeout: PositiveFloat = Field(3600.0, description="seconds to wait for the answers of a round")
    min_replies: Positive | Auto = Field(AUTO, description="answers a round needs; auto: every silo's")
    slice_seconds: PositiveFloat = Field(15.0, description="seconds a silo trains before it reports progress")


class Evaluation(_Section):
    """Measurements at the end of a run."""

    evaluate: bool = Field(True, description="measure the synthetic set against real images")


_SECTIONS: dict[str, type[_Section]] = {
    "run": Run,
    "data": Data,
    "model": Model,
    "training": Training,
    "diffusion": Diffusion,
    "sampling": Sampling,
    "cooperation": Cooperation,
    "exchange": Exchange,
    "evaluation": Evaluation,
}


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
        parsed = {name: _parse(section, mapping, keys, name) for name, section in _SECTIONS.items()}
        config = cls(**parsed)
        _refuse_contradictions(config)
        return config

    def to_run_config(self) -> dict[str, Scalar]:
        """Return the flat mapping of all keys; ``from_run_config`` is its inverse."""
        flat: dict[str, Scalar] = {}
        for name in _SECTIONS:
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
    for name, section in _SECTIONS.items():
        for field, info in section.model_fields.items():
            yield field.replace("_", "-"), name, info


def _parse(section: type[_Section], mapping: Mapping[str, Scalar], keys: Mapping[str, str], name: str) -> _Section:
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
    if choices and isinstance(value, str) and len(messages) == len([d for d in messages if "literal" in d["type"]]):
        return unknown_choice(key, value, choices)
    said = " or ".join(str(d["msg"]) for d in messages)
    allowed = said.replace("Input should be ", "").replace("String should have", "text of")
    return UserError(f"{key} = {value!r}: must be {allowed}")


def _choices(key: str) -> tuple[str, ...]:
    info = next(info for name, _, info in config_keys() if name == key)
    parts = [info.annotation, *get_args(info.annotation)]
    return tuple(word for part in parts for word in get_args(part) if isinstance(word, str)) or tuple(
        word for word in get_args(info.annotation) if isinstance(word, str)
    )


def _refuse_contradictions(config: RunConfig) -> None:
    cooperation, sampler = config.cooperation, config.sampling.sampler
    paper = cooperation.dfd_preset == "paper"
    langevin = sampler == "ula" or (sampler == AUTO and paper)
    if cooperation.weights == "posterior" and langevin:
        raise UserError(
            "weights = 'posterior' needs sampler = 'ddpm', whose ancestral moves it follows:"
            " with sampler = 'ula' set weights = 'energy' or 'constant'"
        )
    if not langevin and cooperation.score_scale not in (AUTO, 1.0):
        raise UserError(f"score-scale = {cooperation.score_scale} needs sampler = 'ula': otherwise set it to 1.0")
    c, temperature = cooperation.step_scale, cooperation.score_scale
    if c != AUTO and temperature != AUTO and c * temperature >= 2:
        raise UserError(f"score-scale = {temperature}: must be < {2 / c:g}, 2 / step-scale, or samples diverge")
    if sampler == "ula" and config.run.strategy != "dfd":
        raise UserError(f"sampler = 'ula' needs strategy = 'dfd', not '{config.run.strategy}': use sampler = 'ddpm'")
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
