"""A network small enough to train in a test, and a data distribution whose noise prediction is known exactly."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers import UNet2DModel
from exact_networks import alphas_of, exact_eps

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
def gaussian_eps() -> Callable[[float, float, str], PredictNoise]:
    """Exact ε of N(mean, std²) under a noise schedule of 1,000 levels."""

    def make(mean: float, std: float, schedule: str) -> PredictNoise:
        alphas = alphas_of(schedule)
        return lambda x, t, labels: exact_eps(x, float(alphas[t]), mean, std)

    return make
