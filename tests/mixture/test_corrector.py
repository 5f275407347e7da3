"""Corrector moves: their moments against arithmetic, and what they mend at a noise level."""

from __future__ import annotations

import math

import pytest
import torch

from fedsynth.errors import UserError
from fedsynth.mixture import LangevinCorrector

MEAN, DEVIATION = 0.3, 0.2


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def exact_eps(x: torch.Tensor, alpha: float) -> torch.Tensor:
    """Noise prediction for images N(MEAN, DEVIATION²)."""
    return (1 - alpha) ** 0.5 * (x - alpha**0.5 * MEAN) / (alpha * DEVIATION**2 + 1 - alpha)


def test_a_move_is_the_formula() -> None:
    x, eps = torch.randn(2, 5, 1, 2, 2, generator=generator())
    moved = LangevinCorrector(1, 0.3, 2.0).move(x, eps, 0.36, generator(7))
    a, sigma = 0.3 * 0.64, 0.8
    z = torch.randn(x.shape, generator=generator(7))
    torch.testing.assert_close(moved, x - a * sigma * eps + sigma * math.sqrt(a * (2 - a)) * z)


@pytest.mark.parametrize("alpha", [0.01, 0.5, 0.99])
def test_noise_of_a_known_image_keeps_its_variance(alpha: float) -> None:
    image, sigma, corrector = 0.4, (1 - alpha) ** 0.5, LangevinCorrector(1, step_scale=0.5)
    noise = generator()
    x = alpha**0.5 * image + sigma * torch.randn(40_000, 1, 1, 1, generator=noise)
    for _ in range(30):
        x = corrector.move(x, (x - alpha**0.5 * image) / sigma, alpha, noise)
    assert float(x.std()) == pytest.approx(sigma, rel=0.015)
    assert float(x.mean()) == pytest.approx(alpha**0.5 * image, abs=4 * sigma / math.sqrt(40_000))


def test_samples_that_are_too_narrow_widen_to_their_level() -> None:
    alpha, noise = 0.7, generator()
    true = math.sqrt(alpha * DEVIATION**2 + 1 - alpha)
    x = alpha**0.5 * MEAN + 0.5 * true * torch.randn(40_000, 1, 1, 1, generator=noise)
    corrector = LangevinCorrector(1)
    for _ in range(30):
        x = corrector.move(x, exact_eps(x, alpha), alpha, noise)
    assert float(x.std()) == pytest.approx(true, rel=0.02)


def test_every_level_but_the_first_is_corrected_before_it_is_left() -> None:
    assert LangevinCorrector(2).visits([9, 4, 0]) == [
        *[(9, False)],
        *[(4, True), (4, True), (4, False)],
        *[(0, True), (0, True), (0, False)],
    ]
    assert LangevinCorrector().visits([9, 4]) == [(9, False), (4, False)]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((-1,), "corrector-steps = -1: must be >= 0"),
        ((1, 0.0), "step-scale = 0.0: must be > 0 and <= 1"),
        ((1, 1.1), "step-scale = 1.1: must be > 0 and <= 1"),
        ((1, 0.2, 0.5), "step-power = 0.5: must be >= 1"),
    ],
)
def test_bad_values_are_refused(values: tuple[float, ...], said: str) -> None:
    with pytest.raises(UserError, match=f"^{said}$"):
        LangevinCorrector(*values)  # type: ignore[arg-type]
