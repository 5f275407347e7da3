"""Keys of the training recipe: what a network predicts, under which noise, and how it is optimised.

A recipe is a named set of values that belong together. In the flat configuration every key here is ``"auto"`` unless
somebody chose a value; ``"auto"`` means the value of the chosen recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from fedsynth.config.keys import Section, key
from fedsynth.config.privacy import OF_DP_SUM, privacy_defaults
from fedsynth.config.types import AUTO, Auto, BelowOne, Count, OpenUnit, PositiveFloat, Scalar

_LINEAR = {"schedule": ("linear", "scaled-linear")}


class Recipe(Section):
    """The training recipe."""

    commands: ClassVar[tuple[str, ...]] = ("train-local",)
    prediction: Literal["epsilon", "v", "x0"] = key("x0", "what the network predicts: the noise, a mix, or the image")
    schedule: Literal["linear", "cosine", "scaled-linear"] = key(
        "cosine",
        "noise schedule: linear β (Ho et al. 2020), cosine ᾱ (Nichol & Dhariwal 2021), or linear √β (Rombach et al."
        " 2022)",
    )
    num_train_timesteps: Annotated[int, Field(ge=1, le=100_000)] = key(1000, "timesteps T")
    beta_start: OpenUnit = key(1e-4, "first beta", acts_with=_LINEAR)
    beta_end: OpenUnit = key(0.02, "last beta", acts_with=_LINEAR)
    loss_weighting: Literal["uniform", "min-snr"] = key(
        "min-snr",
        "uniform: the prediction's error as it is; min-snr: the image's times min(SNR + 1, snr-gamma), SNR for epsilon",
    )
    snr_gamma: PositiveFloat = key(5.0, "γ of min-snr", acts_with={"loss-weighting": ("min-snr",)})
    optimizer: Literal["adam", "adamw"] = key("adamw", "adamw decays weights by 0.01")
    learning_rate: PositiveFloat = key(1.5e-3, "the optimiser's, at its highest")
    warmup_steps: Count = key(20, "steps over which the learning rate rises")
    learning_rate_decay: Literal["constant", "cosine"] = key("cosine", "how the learning rate falls over train-steps")
    ema_decay: BelowOne = key(0.98, "decay of the weight average, after its warm-up")
    codec: Auto | Literal["pixels", "unshuffle-2", "unshuffle-4", "unshuffle-8", "autoencoder"] = key(
        AUTO,
        "what the network sees: pixels, pixels folded into channels, or latents of the autoencoder; auto: latents if"
        " one is given, else the fold whose grid is 8×8 or above, with dp-sum of blocks of 4 at least",
    )

    @model_validator(mode="after")
    def _ends_in_noise(self) -> Recipe:
        if self.schedule == "cosine":
            return self
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
        """ᾱ_T of a schedule with betas, the share of the signal's variance left at the last timestep."""
        steps = max(self.num_train_timesteps - 1, 1)
        power = 0.5 if self.schedule == "scaled-linear" else 1.0
        first, last = self.beta_start**power, self.beta_end**power
        product = 1.0
        for t in range(self.num_train_timesteps):
            product *= 1 - (first + (last - first) * t / steps) ** (1 / power)
        return product


PAPER = "paper"
FINE_TUNE = "fine-tune"
RECIPES: Mapping[str, Recipe] = {
    "default": Recipe(),
    PAPER: Recipe(
        prediction="epsilon",
        schedule="linear",
        loss_weighting="uniform",
        optimizer="adam",
        learning_rate=2e-4,
        warmup_steps=0,
        learning_rate_decay="constant",
        ema_decay=0.995,
        codec="pixels",
    ),
    FINE_TUNE: Recipe(
        prediction="epsilon",
        schedule="scaled-linear",
        beta_start=0.00085,
        beta_end=0.012,
        loss_weighting="uniform",
        learning_rate=1e-5,
        warmup_steps=0,
        learning_rate_decay="constant",
        codec="autoencoder",
    ),
}
"""Recipes by name: our default, that of Ho et al. 2020 (arXiv 2006.11239), which the papers' settings use, and that of
Stable Diffusion 1.5 with the rate of diffusers' fine-tuning script; a base model's own schedule goes before it."""

LORA_RATE = 1e-4
"""Rate of adapters in ``fine-tune``: that of diffusers' script for them."""


def recipe_name(flat: Mapping[str, Scalar]) -> str:
    """Return the name of the recipe that a flat configuration means."""
    if flat["recipe"] != AUTO:
        return str(flat["recipe"])
    if flat["base-model"]:
        return FINE_TUNE
    return PAPER if flat["dfd-preset"] == PAPER else "default"


def recipe_defaults(flat: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Return what ``"auto"`` means for the keys of the recipe, by key, beside the other values."""
    name = recipe_name(flat)
    defaults: dict[str, Scalar] = dict(RECIPES[name].model_dump(by_alias=True))
    if name == FINE_TUNE and flat["train"] == "lora":
        return {**defaults, "learning-rate": LORA_RATE}
    if name == "default" and flat["strategy"] == "dp-sum":
        return {**defaults, "learning-rate": OF_DP_SUM["learning-rate"]}
    return defaults


def shared_defaults(flat: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Return what ``"auto"`` means for the keys of the recipe and of private training, by key."""
    return recipe_defaults(flat) | privacy_defaults(str(flat["strategy"]))
