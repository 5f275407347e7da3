"""A network small enough to train in a test, and a data distribution whose noise prediction is known exactly."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel

from fedsynth.config import Diffusion
from fedsynth.diffusion import build_unet
from fedsynth.diffusion.sampling import PredictNoise
from fedsynth.spec import ImageSpec

SPEC = ImageSpec(1, 8, ("zero", "one", "two"))


@pytest.fixture
def tiny_unet() -> Callable[[int], UNet2DModel]:
    """Builds the same small network for the same seed."""

    def build(seed: int = 0) -> UNet2DModel:
        return build_unet("digits", SPEC, torch.Generator().manual_seed(seed), (8, 8), 1)

    return build


@pytest.fixture
def gaussian_eps() -> Callable[[float, float], PredictNoise]:
    """Exact ε of N(mean, std²) under the default noise schedule."""
    diffusion = Diffusion()
    alphas = np.cumprod(1 - np.linspace(diffusion.beta_start, diffusion.beta_end, diffusion.num_train_timesteps))

    def make(mean: float, std: float) -> PredictNoise:
        def predict(x: torch.Tensor, t: int, labels: torch.Tensor) -> torch.Tensor:
            alpha_bar = float(alphas[t])
            scale: float = (1 - alpha_bar) ** 0.5 / (alpha_bar * std**2 + 1 - alpha_bar)
            return torch.mul(x - alpha_bar**0.5 * mean, scale)

        return predict

    return make
