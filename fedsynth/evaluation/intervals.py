"""Means with intervals over repetitions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

CONFIDENCE = 0.95


def mean_and_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean of independent repetitions and the half width of its 95 % interval.

    Student's t with n - 1 degrees of freedom: right for normal values, rough for two or three repetitions.

    Args:
        values: at least one.

    Returns:
        The mean, and ``t · s / √n``, or None for a single value, whose spread is unknown.
    """
    if len(values) < 2:
        return values[0], None
    from scipy.special import stdtrit  # only here: one run has no interval

    quantile = float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2))
    return fmean(values), quantile * stdev(values) / math.sqrt(len(values))
