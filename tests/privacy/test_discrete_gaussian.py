"""Discrete Gaussian noise: exact probabilities, and the bound on a sum of draws that the accounting rests on."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from fedsynth.privacy.discrete_gaussian import (
    LEAST_STD,
    LOST_VARIANCE,
    MOST_STD,
    discrete_gaussian,
    sampled_rows,
)


def masses(variance: float, reach: int) -> np.ndarray:
    weights = np.exp(-(np.arange(-reach, reach + 1.0) ** 2) / (2 * variance))
    return np.asarray(weights / weights.sum())


@pytest.mark.parametrize("std", [1, 3])
def test_whole_numbers_have_the_probabilities_of_the_definition(std: int) -> None:
    drawn = discrete_gaussian(std, 40_000, np.random.default_rng(std).bytes)
    reach = 3 * std
    inside = drawn[abs(drawn) <= reach]
    expected = masses(std**2, 12 * std)[12 * std - reach : 12 * std + reach + 1] * len(drawn)
    counts = np.bincount(inside + reach, minlength=2 * reach + 1)
    observed, wanted = (np.append(part, len(drawn) - part.sum()) for part in (counts, expected))
    assert stats.chisquare(observed, wanted).pvalue > 0.001


@pytest.mark.parametrize("std", [LEAST_STD, MOST_STD])
def test_wide_draws_are_gaussian_up_to_the_rounding(std: int) -> None:
    drawn = discrete_gaussian(std, 10_000, np.random.default_rng(7).bytes) / std
    assert drawn.mean() == pytest.approx(0, abs=4 / math.sqrt(10_000))
    assert drawn.var() == pytest.approx(1, abs=4 * math.sqrt(2 / 10_000))
    steps = np.rint(np.linspace(-4, 4, 65) * std) / std
    below = stats.norm.cdf(steps + 0.5 / std)  # between two whole numbers both distributions are the same
    found = np.searchsorted(np.sort(drawn), steps, side="right") / len(drawn)
    assert abs(found - below).max() < 1.95 / math.sqrt(len(drawn))  # Kolmogorov's bound at 1 in 1,000


def test_a_sum_of_draws_has_the_probabilities_of_one_draw() -> None:
    """Even draws far narrower than the proof asks for: at their σ of 2, e is 2 exp(-4π²) = 1e-17."""
    one = masses(4.0, 40)
    three = np.convolve(np.convolve(one, one), one)
    middle = slice(len(three) // 2 - 20, len(three) // 2 + 21)
    assert three[middle] == pytest.approx(masses(12.0, 120)[100:141], rel=1e-12)


def test_a_draw_has_the_probabilities_of_a_rounded_gaussian_number() -> None:
    """Gaussian noise of a variance of 100 - 9, rounded at random around itself, against a draw of variance 100."""
    noise, step = np.arange(-90, 90, 0.01), 0.01
    density = stats.norm.pdf(noise, scale=math.sqrt(100 - LOST_VARIANCE)) * step
    whole = np.arange(-160, 161)
    around = np.exp(-((whole[:, None] - noise) ** 2) / (2 * LOST_VARIANCE))
    rounded = (around / around.sum(0)) @ density
    assert rounded[130:191] == pytest.approx(masses(100.0, 160)[130:191], rel=1e-9)


def test_draws_beyond_the_proof_are_refused() -> None:
    for std in (0, MOST_STD + 1):
        with pytest.raises(ValueError, match=f"standard deviation {std}: must be a whole number from 1"):
            discrete_gaussian(std, 1)


def test_a_sample_has_each_record_with_the_rate() -> None:
    bits = np.random.default_rng(3).bytes
    times = sum(np.bincount(sampled_rows(50, 0.3, bits), minlength=50) for _ in range(400))
    assert stats.chisquare(times).pvalue > 0.001
    assert np.mean(times) == pytest.approx(0.3 * 400, abs=4 * math.sqrt(400 * 0.21 / 50))
    assert len(sampled_rows(50, 1.0, bits)) == 50
