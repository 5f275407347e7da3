"""Whole numbers in proportion to weights."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def apportion(total: int, weights: NDArray[np.integer] | NDArray[np.floating]) -> NDArray[np.int64]:
    """Split ``total`` into whole numbers proportional to ``weights`` by the largest-remainder method.

    The arithmetic is exact: a rounded quotient would hand the last unit to the wrong entry now and then.

    Args:
        total: the sum to hand out, at least 0.
        weights: any shape, non-negative and finite, with a positive sum.

    Returns:
        int64 of the same shape; sums to ``total``, each entry less than 1 away from its exact share. Of equal
        remainders the earlier entry is served first.
    """
    whole = _whole_numbers(weights.ravel())
    # Objects are Python's integers, which never overflow.
    exact = whole * int(total)
    parts: NDArray[np.int64] = (exact // whole.sum()).astype(np.int64)
    remainders = exact % whole.sum()
    parts[np.argsort(-remainders, kind="stable")[: int(total) - int(parts.sum())]] += 1
    return parts.reshape(weights.shape)


def _whole_numbers(weights: NDArray[np.integer] | NDArray[np.floating]) -> NDArray[np.object_]:
    """Return integers in the proportions of ``weights`` (N,): a float is a whole number by a power of two."""
    ratios = [weight.as_integer_ratio() for weight in weights.tolist()]
    finest = max(denominator for _, denominator in ratios)
    return np.array([numerator * (finest // denominator) for numerator, denominator in ratios], dtype=object)
