"""Drawing samples: any diffusers scheduler, driven by any function that predicts noise."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers import UNet2DModel

from fedsynth.config import Recipe
from fedsynth.diffusion.denoiser import Denoiser, GuidedDenoiser
from fedsynth.diffusion.noise_levels import to_noise
from fedsynth.diffusion.recipe import DIFFUSERS_PREDICTION
from fedsynth.diffusion.samplers import make_scheduler
from fedsynth.message_size import NETWORK_BATCH
from fedsynth.seeding import make_generator

PredictNoise = Callable[[torch.Tensor, int, torch.Tensor], torch.Tensor]
"""(x_t (N, C, H, W), t, labels (N,)) -> ε (N, C, H, W)."""


def draw_initial_noise(seed: int, num_samples: int, shape: tuple[int, int, int]) -> torch.Tensor:
    """Draw x_T ~ N(0, I) (N, C, H, W); the same for every method of a run seed, so that methods can be paired."""
    return torch.randn((num_samples, *shape), generator=make_generator(seed, "initial-noise"))


@torch.inference_mode()
def sample(
    predict_noise: PredictNoise,
    scheduler: Any,
    x_T: torch.Tensor,
    labels: torch.Tensor,
    generator: torch.Generator,
    on_step: Callable[[int], None] | None = None,
) -> torch.Tensor:
    """Denoise ``x_T`` over the scheduler's timesteps.

    Args:
        predict_noise: noise prediction ε(x_t, t, y).
        scheduler: any diffusers scheduler whose timesteps are set; fractional ones are rounded for ``predict_noise``.
        x_T: initial noise (N, C, H, W).
        labels: classes (N,).
        generator: source of the noise that stochastic schedulers inject.
        on_step: called with the number of levels done after each one.

    Returns:
        x_0 (N, C, H, W), nominally within the codec's bound.
    """
    draws_noise = "generator" in inspect.signature(scheduler.step).parameters
    extra = {"generator": generator} if draws_noise else {}
    x: torch.Tensor = x_T * scheduler.init_noise_sigma
    for done, t in enumerate(scheduler.timesteps, start=1):
        eps = predict_noise(scheduler.scale_model_input(x, t), round(t.item()), labels)
        x = scheduler.step(eps, t, x, **extra).prev_sample
        if on_step is not None:
            on_step(done)
    return x


def network_output(unet: Denoiser, batch_size: int = NETWORK_BATCH) -> PredictNoise:
    """Return what a network says of (x_t, t, y), evaluated in batches on its device; inputs and outputs on the CPU."""
    device = next(unet.parameters()).device
    unet.eval()
    said = unet.guided if isinstance(unet, GuidedDenoiser) else partial(_said, unet)

    @torch.inference_mode()
    def predict(x: torch.Tensor, t: int, labels: torch.Tensor) -> torch.Tensor:
        output = torch.empty_like(x)
        for first in range(0, len(x), batch_size):
            rows = slice(first, first + batch_size)
            output[rows] = said(x[rows].to(device), t, labels[rows].to(device)).cpu()
        return output

    return predict


def _said(unet: UNet2DModel, x: torch.Tensor, t: int, labels: torch.Tensor) -> torch.Tensor:
    predicted: torch.Tensor = unet(x, t, class_labels=labels).sample
    return predicted


def noise_predictor(unet: Denoiser, recipe: Recipe, bound: float = 1.0) -> PredictNoise:
    """Return ε(x_t, t, y) of a network that was trained by ``recipe``; inputs and outputs on the CPU.

    Args:
        unet: the network.
        recipe: what it predicts, under which schedule.
        bound: largest absolute value of x_0, see :class:`fedsynth.diffusion.codec.Codec`.
    """
    predict = network_output(unet)
    alphas_cumprod = make_scheduler(recipe).alphas_cumprod.double()
    prediction_type = DIFFUSERS_PREDICTION[recipe.prediction]

    @torch.inference_mode()
    def predict_noise(x: torch.Tensor, t: int, labels: torch.Tensor) -> torch.Tensor:
        return to_noise(predict(x, t, labels), x, float(alphas_cumprod[t]), prediction_type, bound)

    return predict_noise
