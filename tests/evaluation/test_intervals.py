"""Intervals against SciPy's, and their coverage of the true mean."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fedsynth.evaluation.intervals import mean_and_interval


def test_equals_scipy() -> None:
    values = [0.81, 0.84, 0.79, 0.9]
    mean, half = mean_and_interval(values)
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    assert half is not None
    assert (mean - half, mean + half) == pytest.approx((low, high), rel=1e-12)


def test_one_value_has_no_interval() -> None:
    assert mean_and_interval([0.5]) == (0.5, None)


def test_covers_the_true_mean_as_often_as_promised() -> None:
    draws = np.random.default_rng(0).normal(3.0, 2.0, (4000, 3))
    hits = [abs(mean - 3.0) <= (half or 0.0) for mean, half in map(mean_and_interval, draws.tolist())]
    assert np.mean(hits) == pytest.approx(0.95, abs=0.012)
