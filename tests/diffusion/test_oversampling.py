"""Which images a training draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from fedsynth.config import Diffusion, Training
from fedsynth.diffusion import TrainingState, train

COUNTS = {0: 2, 2: 18, 5: 80}
"""Images of each class; classes 1, 3 and 4 are held by others."""

LABELS = torch.cat([torch.full((count,), label) for label, count in COUNTS.items()])
LABELS = LABELS[torch.randperm(100, generator=torch.Generator().manual_seed(0))]
DRAWS = 40 * 256


class AnyImage(torch.nn.Module):
    """Answers nonsense quickly and remembers the classes it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.labels = torch.nn.Parameter(torch.zeros(())), []

    def forward(self, x: torch.Tensor, t: torch.Tensor, class_labels: torch.Tensor) -> Any:
        self.labels.append(class_labels)
        return type("Output", (), {"sample": self.weight * x})


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], torch.Tensor]:
    """Numbers of the images that a training draws."""
    add_noise = DDPMScheduler.add_noise

    def draw(oversample: bool) -> torch.Tensor:
        rows: list[torch.Tensor] = []

        def spy(self: Any, clean: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            rows.append(clean[:, 0, 0, 0].round().long())
            return add_noise(self, clean, noise, t)

        monkeypatch.setattr(DDPMScheduler, "add_noise", spy)
        config, network = Training(batch_size=256, oversample=oversample), AnyImage()
        images = torch.arange(100.0)[:, None, None, None].expand(100, 1, 2, 2)
        state = TrainingState(network, config, torch.Generator().manual_seed(1))  # type: ignore[arg-type]
        train(state, images, LABELS, config, Diffusion(), DRAWS // 256)
        assert torch.equal(torch.cat(network.labels), LABELS[torch.cat(rows)])
        return torch.cat(rows)

    return draw


@pytest.mark.parametrize("oversample", [False, True])
def test_frequencies(oversample: bool, drawn: Callable[[bool], torch.Tensor]) -> None:
    rows = drawn(oversample)
    frequencies = np.bincount(rows, minlength=100) / DRAWS
    expected = np.array([1 / 3 / COUNTS[int(label)] if oversample else 0.01 for label in LABELS])
    std = np.sqrt(expected * (1 - expected) / DRAWS)
    assert (np.abs(frequencies - expected) < 4.5 * std).all()
    for label, count in COUNTS.items():
        share = float((LABELS[rows] == label).double().mean())
        assert share == pytest.approx(1 / 3 if oversample else count / 100, abs=0.02)


def test_uniform_draws_are_the_generator_s_own(drawn: Callable[[bool], torch.Tensor]) -> None:
    generator = torch.Generator().manual_seed(1)
    expected = torch.randint(100, (256,), generator=generator)
    assert torch.equal(drawn(False)[:256], expected)
    assert not torch.equal(drawn(True)[:256], expected)


def test_one_class_and_one_image() -> None:
    config = Training(batch_size=4, oversample=True)
    state = TrainingState(AnyImage(), config, torch.Generator().manual_seed(1))  # type: ignore[arg-type]
    losses = train(state, torch.zeros(1, 1, 8, 8), torch.tensor([7]), config, Diffusion(), 2)
    assert np.isfinite(losses).all()
