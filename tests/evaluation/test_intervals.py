"""Intervals against SciPy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fedsynth.evaluation.intervals import mean_and_interval


def test_equals_scipy_and_one_value_has_none() -> None:
    assert mean_and_interval([0.5]) == (0.5, None)
    values = [0.81, 0.84, 0.79, 0.9]
    mean, half = mean_and_interval(values)
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    assert half is not None
    assert (mean - half, mean + half) == pytest.approx((low, high), rel=1e-12)
