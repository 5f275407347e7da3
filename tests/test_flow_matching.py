"""The recipe that only the comparison knows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from experiments import flow_matching
from fedsynth.config import RunConfig
from fedsynth.diffusion import EncodedImages, TrainingState, codec_of, initial_unet
from fedsynth.spec import ImageSpec


class _KnowsTheImage(torch.nn.Module):
    """Says exactly u = ε - x_0 of x_σ = (1-σ) x_0 + σ ε: there is only one image."""

    def __init__(self, image: torch.Tensor) -> None:
        super().__init__()
        self.image = image

    def forward(self, x: torch.Tensor, timestep: float, class_labels: torch.Tensor) -> SimpleNamespace:
        sigma = timestep / 1000
        return SimpleNamespace(sample=(x - (1 - sigma) * self.image) / sigma - self.image)


def test_a_network_of_flow_matching_gives_the_noise_of_a_sample_at_every_level() -> None:
    image, noise = torch.rand(1, 1, 4, 4) * 2 - 1, torch.randn(5, 1, 4, 4)
    alphas_cumprod = torch.tensor([0.999, 0.5, 1e-3], dtype=torch.float64)
    predict = flow_matching.flow_noise_predictor(cast(Any, _KnowsTheImage(image)), alphas_cumprod, 1.0)
    for t, alpha_bar in enumerate(alphas_cumprod.tolist()):
        noisy = alpha_bar**0.5 * image + (1 - alpha_bar) ** 0.5 * noise
        torch.testing.assert_close(predict(noisy, t, torch.zeros(5).long()), noise, atol=1e-4, rtol=0)


@pytest.mark.parametrize("levels", flow_matching.LEVELS)
def test_flow_matching_learns_an_image(levels: str) -> None:
    config, spec = RunConfig.from_run_config({"block-out-channels": "8,8", "batch-size": 8}), ImageSpec(1, 8, ("a",))
    codec = codec_of(config, spec)
    images = EncodedImages(np.full((4, 8, 8, 1), 255, dtype=np.uint8), codec)
    state = TrainingState(initial_unet(config, spec), config.recipe, torch.Generator().manual_seed(0), 120)
    flow_matching.train_flow(state, images, torch.zeros(4).long(), config.training, 120, levels)
    # An untrained network says about 0, where u has mean square 2.
    assert sum(state.losses[:5]) / 5 > 1.5
    assert sum(state.losses[-20:]) / 20 < 0.7
