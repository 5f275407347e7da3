"""The arithmetic of the audit of private training, and its attack: :mod:`experiments.privacy_audit`."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import beta, norm

from experiments.privacy_audit import Attacks, Rates, attack, best_rates, log_likelihood_ratio
from fedsynth.privacy import Mechanism, epsilon

GAUSSIAN = Mechanism(2.0)


@pytest.mark.parametrize(("hits", "false_alarms"), [(180, 3), (200, 0), (7, 7), (0, 200)])
def test_rates_are_clopper_pearson_ends_and_bound_epsilon(hits: int, false_alarms: int) -> None:
    found = Rates.of(hits, false_alarms, 200)
    # Clopper & Pearson 1934, by the quantiles of the beta distribution.
    low = beta.ppf(0.025, hits, 201 - hits) if hits else 0.0
    high = beta.ppf(0.975, false_alarms + 1, 200 - false_alarms) if false_alarms < 200 else 1.0
    assert (found.true_positives, found.false_positives) == pytest.approx((low, high))
    proven = math.log((low - 1e-5) / high) if low > high else 0.0
    assert found.epsilon() == pytest.approx(max(0.0, proven))


def test_noise_is_the_largest_that_allows_the_rates() -> None:
    # The best guesses about one Gaussian mechanism are known (Dong et al. 2022, Gaussian differential privacy).
    exact = Rates(float(norm.cdf(norm.ppf(0.1) + 1 / 2.0)), 0.1)
    assert exact.noise(GAUSSIAN) == pytest.approx(2.0, rel=0.03)
    assert exact.noise(GAUSSIAN) >= 2.0, "a bound errs on the side of the claim"
    assert Rates(0.1, 0.1).noise(GAUSSIAN) == pytest.approx(100.0)
    assert exact.epsilon() < epsilon([GAUSSIAN], 1e-5)


def test_threshold_is_measured_on_other_trainings_than_it_is_chosen_on() -> None:
    scores = np.arange(40.0)
    # In the first quarter the canary is above all others, in the rest it is nowhere.
    there, absent = np.where(scores < 10, 100.0, 0.0), np.where(scores < 10, 0.0, 1.0)
    assert best_rates(there, absent, lambda rates: rates.separation).epsilon() == 0.0
    assert best_rates(there[:10], absent[:10], lambda rates: rates.separation).epsilon() > 0.5


def test_likelihood_ratio_is_that_of_a_sampled_canary() -> None:
    sums, claim = np.array([0.3, 1.7]), Mechanism(0.8, 0.25, 2)
    there = 0.75 * norm.pdf(sums, 0, 0.8) + 0.25 * norm.pdf(sums, 1, 0.8)
    assert log_likelihood_ratio(sums, claim) == pytest.approx(np.log(there / norm.pdf(sums, 0, 0.8)).sum())


def test_without_noise_the_canary_is_seen_in_every_training() -> None:
    claim = Mechanism(2.0, 1.0, 2)
    there, absent = (attack(claim, with_canary, 0.0, 3, 0) for with_canary in (True, False))
    assert isinstance(there, Attacks)
    # Each step's sum has moved by the clipping norm, 1, nearly all of it in the canary's own row.
    assert there.steps == pytest.approx(2 * 0.5 / 2.0**2, rel=0.05)
    assert absent.steps == pytest.approx(-2 * 0.5 / 2.0**2, rel=1e-6)
    assert (there.weights > 1e-3).all()
    assert absent.weights == pytest.approx(0.0)
