"""Keys of one diffusion model: the network, how long it is trained on what, and how it is sampled."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from fedsynth.config.keys import Section, key
from fedsynth.config.privacy import NOT_PRIVATE
from fedsynth.config.types import (
    A_FOLDER,
    AUTO,
    FEW_LABELS,
    OWN_MODELS,
    Auto,
    BelowOne,
    Count,
    Positive,
    PositiveFloat,
    PresetName,
    Scalar,
)

_OWN = {"strategy": (*OWN_MODELS, *FEW_LABELS), "diffusion-strategy": ("dfd", "pooled")}
_NO_BASE = {"base-model": ("",)}
_BASE: dict[str, tuple[Scalar, ...]] = {"base-model": (A_FOLDER,)}
LORA = "lora"
_WITH_ADAPTERS: dict[str, tuple[Scalar, ...]] = {"train": (LORA,)}
MAX_PROMPT = 300
AUGMENTATIONS = ("flip", "rotate90", "shift")


class Model(Section):
    """The U-Net."""

    commands: ClassVar[tuple[str, ...]] = ("train-local",)
    recipe: Literal["default", "paper", "fine-tune"] | Auto = key(
        AUTO,
        "named training recipe, see its keys below; auto: fine-tune with a base-model, paper with dfd-preset = paper,"
        " else default",
    )
    model: PresetName | Auto = key(
        AUTO, "U-Net preset; auto: one that suits the grid, with recipe = paper the dataset's", acts_with=_NO_BASE
    )
    block_out_channels: str = key(
        AUTO, "channels per level, such as '32,64,64'; auto: the preset's", acts_with=_NO_BASE
    )
    layers_per_block: Annotated[int, Field(ge=1, le=32)] | Auto = key(
        AUTO, "residual layers per level; auto: the preset's", acts_with=_NO_BASE
    )
    autoencoder: str = key(
        "",
        "folder of a pretrained autoencoder, equal at every silo; a real silo has its own --autoencoder-path",
        path=True,
        may_change=True,
        commands=("train-local", "draw", "evaluate"),
        acts_with={"codec": ("autoencoder",), **_NO_BASE},
    )
    init_from: str = key(
        "",
        "folder of a public model that all networks of the run start from, equal at every silo; a real silo has its own"
        " --init-from",
        path=True,
        may_change=True,
        acts_with=_NO_BASE,
    )
    base_model: str = key(
        "",
        "folder of a Stable Diffusion 1.x or 2.x pipeline, or of a DiT, that is fine-tuned, equal at every silo; a real"
        " silo has its own --base-model",
        path=True,
        may_change=True,
    )
    prompt: str = key(
        "a photo of {class}",
        "prompt of a class for the base-model; its prompts.json goes before it",
        acts_with=_BASE,
    )
    train: Literal["unet", "lora"] = key(
        "unet",
        "what is trained of the base-model, kept and sent: all of its network, or low-rank adapters beside its weights",
        acts_with=_BASE,
    )
    lora_rank: Annotated[int, Field(ge=1, le=1024)] = key(8, "r, rank of an adapter", acts_with=_WITH_ADAPTERS)
    lora_targets: Literal["attention", "all"] = key(
        "attention",
        "layers with an adapter: the projections of attention, or every linear layer and convolution",
        acts_with=_WITH_ADAPTERS,
    )

    @model_validator(mode="after")
    def _channels_are_numbers(self) -> Model:
        self.channels()
        return self

    @model_validator(mode="after")
    def _prompt_names_its_class(self) -> Model:
        if "{class}" not in self.prompt or len(self.prompt) > MAX_PROMPT:
            raise ValueError(
                f"prompt = '{self.prompt:.100}': must hold {{class}}, in whose place the class is named, and have at"
                f" most {MAX_PROMPT} characters"
            )
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
        400,
        "optimiser steps per silo, over all rounds of an averaging strategy or of its own model",
        may_change="with a strategy that has num-rounds: others train before the first round",
        acts_with=NOT_PRIVATE,
    )
    local_steps: Positive | Auto = key(
        AUTO, "optimiser steps of a silo's own model; auto: train-steps", acts_with={**_OWN, **NOT_PRIVATE}
    )
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = key(32, "images per step", acts_with=NOT_PRIVATE)
    max_grad_norm: PositiveFloat = key(1.0, "gradients are clipped to this norm", acts_with=NOT_PRIVATE)
    augment: str = key(
        "",
        "variants of images that could be real ones: of 'flip', 'rotate90' and 'shift', such as 'flip,rotate90';"
        " empty: none",
        commands=("evaluate",),
    )
    oversample: bool = key(False, "draw a silo's classes equally often, however rare", acts_with=NOT_PRIVATE)
    label_dropout: BelowOne = key(
        0.0,
        "share of the images that the base-model is trained on with an empty prompt, which guidance starts from",
        acts_with=_BASE,
    )
    mixed_precision: Literal["no", "bf16"] = key("no", "bf16: autocast, on CUDA only", acts_with=NOT_PRIVATE)
    early_stop: bool = key(
        True,
        "end a silo's own model when its loss on held-out images stops falling; never with dp-epsilon",
        acts_with=_OWN,
    )
    copy_check: bool = key(
        True,
        "have a silo say how often its own model copies training images; never with dp-epsilon",
        acts_with=_OWN,
    )

    @model_validator(mode="after")
    def _augmentations_are_known(self) -> Training:
        names = self.augmentations()
        if not set(names) <= set(AUGMENTATIONS) or len(set(names)) < len(names):
            raise ValueError(f"augment = '{self.augment}': must name each of {', '.join(AUGMENTATIONS)} at most once")
        return self

    def augmentations(self) -> tuple[str, ...]:
        """``augment`` one by one."""
        return tuple(name.strip() for name in self.augment.split(",")) if self.augment else ()

    @property
    def own_steps(self) -> int:
        """Optimiser steps of a silo's own model."""
        return self.train_steps if self.local_steps == AUTO else self.local_steps


class Sampling(Section):
    """The synthetic set and how one model is sampled."""

    num_samples: Positive = key(1000, "images in the synthetic set", commands=("draw",))
    labels: Literal["balanced", "observed"] = key(
        "balanced", "label frequencies of the synthetic set", commands=("draw",)
    )
    sampling_steps: Positive = key(10, "timesteps visited when one model is sampled", commands=("draw",))
    guidance: Annotated[float, Field(ge=1, le=100)] = key(
        1.0, "how far predictions go beyond the class's prompt, away from the empty one; 1: not at all", acts_with=_BASE
    )
    guidance_source: Literal["silo", "base"] = key(
        "silo",
        "who predicts for the empty prompt: the network that is sampled, or the base-model without its adapters",
        acts_with=_WITH_ADAPTERS,
    )
    generator_steps: Count = key(
        0,
        "optimiser steps of a model that the server trains on the finished set; 0: none",
        may_change=True,
        acts_with={"strategy": ("dfd", "pooled")},
    )
