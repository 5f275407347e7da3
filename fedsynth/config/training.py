"""Keys of one diffusion model: the network, its training, its noise schedule, and how it is sampled."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from fedsynth.config.keys import Section, key
from fedsynth.config.types import (
    AUTO,
    OWN_MODELS,
    Auto,
    BelowOne,
    Count,
    OpenUnit,
    Positive,
    PositiveFloat,
    PresetName,
)

_OWN = {"strategy": OWN_MODELS}


class Model(Section):
    """The U-Net."""

    commands: ClassVar[tuple[str, ...]] = ("train-local",)
    model: PresetName | Auto = key(AUTO, "U-Net preset; auto: the dataset's")
    block_out_channels: str = key(AUTO, "channels per level, such as '32,64,64'; auto: the preset's")
    layers_per_block: Annotated[int, Field(ge=1, le=32)] | Auto = key(
        AUTO, "residual layers per level; auto: the preset's"
    )

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
        if not 1 <= len(channels) <= 12 or any(not 4 <= c <= 65_536 or c % 4 for c in channels):
            raise ValueError(
                f"block-out-channels = '{self.block_out_channels}': must be multiples of 4, such as '32,64',"
                " twelve at most and none above 65536"
            )
        return channels


class Training(Section):
    """Local training of one silo."""

    commands: ClassVar[tuple[str, ...]] = ("train-local",)
    train_steps: Positive = key(
        900,
        "optimiser steps per silo, over all rounds of an averaging strategy or of its own model",
        may_change=True,
    )
    local_steps: Positive | Auto = key(AUTO, "optimiser steps of a silo's own model; auto: train-steps", acts_with=_OWN)
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = key(32, "images per step")
    learning_rate: PositiveFloat = key(2e-4, "Adam's")
    ema_decay: BelowOne = key(0.995, "decay of the weight average, after its warm-up")
    max_grad_norm: PositiveFloat = key(1.0, "gradients are clipped to this norm")
    oversample: bool = key(False, "draw a silo's classes equally often, however rare")
    mixed_precision: Literal["no", "bf16"] = key("no", "bf16: autocast, on CUDA only")
    early_stop: bool = key(
        True, "end a silo's own model when its loss on held-out images stops falling", acts_with=_OWN
    )
    copy_check: bool = key(True, "have a silo say how often its own model copies training images", acts_with=_OWN)

    @property
    def own_steps(self) -> int:
        """Optimiser steps of a silo's own model."""
        return self.train_steps if self.local_steps == AUTO else self.local_steps


class Diffusion(Section):
    """The noise schedule (linear, Ho et al. 2020)."""

    commands: ClassVar[tuple[str, ...]] = ("train-local",)
    num_train_timesteps: Annotated[int, Field(ge=1, le=100_000)] = key(1000, "timesteps T")
    beta_start: OpenUnit = key(1e-4, "first beta")
    beta_end: OpenUnit = key(0.02, "last beta")

    @model_validator(mode="after")
    def _ends_in_noise(self) -> Diffusion:
        if self.beta_end <= self.beta_start:
            raise ValueError(f"beta-end = {self.beta_end}: must be > beta-start = {self.beta_start}")
        last = self.last_alpha_cumprod()
        if last > 0.01:
            raise ValueError(
                f"num-train-timesteps = {self.num_train_timesteps} leaves {last:.2f} of the signal's variance at the"
                " last timestep (at most 0.01 is allowed, since sampling starts from pure noise):"
                " raise num-train-timesteps or beta-end"
            )
        return self

    def last_alpha_cumprod(self) -> float:
        """ᾱ_T, the share of the signal's variance left at the last timestep."""
        steps = max(self.num_train_timesteps - 1, 1)
        product = 1.0
        for t in range(self.num_train_timesteps):
            product *= 1 - (self.beta_start + (self.beta_end - self.beta_start) * t / steps)
        return product


class Sampling(Section):
    """The synthetic set and how one model is sampled."""

    num_samples: Positive = key(1000, "images in the synthetic set", commands=("draw",))
    labels: Literal["balanced", "observed"] = key(
        "balanced", "label frequencies of the synthetic set", commands=("draw",)
    )
    sampling_steps: Positive = key(10, "timesteps visited when one model is sampled", commands=("draw",))
    generator_steps: Count = key(
        0,
        "optimiser steps of a model that the server trains on the finished set; 0: none",
        may_change=True,
        acts_with={"strategy": ("dfd", "pooled")},
    )
