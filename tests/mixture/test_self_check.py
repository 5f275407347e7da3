from __future__ import annotations

import pytest
import torch

from fedsynth.mixture.screening import LEVELS
from fedsynth.mixture.self_check import fault_of_own

CLEAN = torch.rand((16, 1, 8, 8), generator=torch.Generator().manual_seed(1)) * 2 - 1
NOISE = torch.randn(CLEAN.shape, generator=torch.Generator().manual_seed(2))


def noised(alpha_bar: float) -> torch.Tensor:
    return alpha_bar**0.5 * CLEAN + (1 - alpha_bar) ** 0.5 * NOISE


def implying(images: torch.Tensor, alpha_bar: float) -> torch.Tensor:
    """The noise prediction of a model that takes the images behind the samples for ``images``."""
    return (noised(alpha_bar) - alpha_bar**0.5 * images) / (1 - alpha_bar) ** 0.5


@pytest.mark.parametrize("alpha_bar", LEVELS)
def test_who_knows_the_noise_or_is_nearly_right_passes(alpha_bar: float) -> None:
    other = torch.randn(CLEAN.shape, generator=torch.Generator().manual_seed(3))
    for eps in (NOISE, NOISE + 0.5 * other, implying(0.6 * CLEAN, alpha_bar)):
        assert fault_of_own(eps, noised(alpha_bar), alpha_bar, noise=NOISE) is None


@pytest.mark.parametrize("alpha_bar", LEVELS[:-1])
def test_what_nobody_could_count_is_a_fault_with_and_without_the_noise(alpha_bar: float) -> None:
    for noise in (NOISE, None):
        said = [
            fault_of_own(eps, noised(alpha_bar), alpha_bar, noise=noise)
            for eps in (torch.zeros_like(CLEAN), -NOISE, 10 * NOISE, NOISE / 0)
        ]
        assert [bool(fault) for fault in said] == [True] * 4
        assert said[3] == "not finite"
        assert said[0] is not None
        assert said[0].startswith("does not follow the noise: gain 0 <")


def test_a_model_of_other_images_is_found_by_its_error_alone() -> None:
    alpha_bar = LEVELS[-1]
    negative, x_t = implying(-CLEAN, alpha_bar), noised(alpha_bar)
    # It is as far from the truth as two images are, in units of the noise: 2 sqrt(0.895 / 0.105 / 3).
    fault = fault_of_own(negative, x_t, alpha_bar, noise=NOISE)
    assert fault is not None
    assert fault.startswith("does not know the images: error 3.")
    # An exact model of the negatives answers just so about its own images: nobody else can tell.
    assert fault_of_own(negative, x_t, alpha_bar) is None
