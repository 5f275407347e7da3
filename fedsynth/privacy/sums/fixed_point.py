"""Whole numbers modulo 2³²: what masks can be added to without a trace of rounding, and how numbers become such."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedsynth.privacy.sums.terms import SumError

STEP = 2.0**-16
"""Distance of two neighbouring noise predictions: a rounded number is off by half of it."""
LARGEST = 32.0
"""Size to which a noise prediction is clamped before it is weighted; they were 10.3 at most."""

Sizes = NDArray[np.float64] | float
"""One for all numbers, or of a shape that broadcasts to theirs."""


def to_ring(values: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Return whole numbers modulo 2³²."""
    return values.astype(np.uint32)


def from_ring(numbers: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Return the whole numbers from -2³¹ to 2³¹ - 1 that stand for numbers modulo 2³²."""
    return numbers.view(np.int32).astype(np.int64)


def to_fixed(
    values: NDArray[np.floating],
    weights: NDArray[np.floating] | float = 1.0,
    largest: Sizes = LARGEST,
    step: Sizes = STEP,
) -> NDArray[np.uint32]:
    """Return ``weights`` times ``values``, which are clamped to ±``largest``, as whole multiples of ``step``.

    Args:
        values: finite numbers, of any shape.
        weights: 0 to 1, of a shape that broadcasts to theirs.
        largest: size to which a value is clamped.
        step: distance of two neighbouring numbers.

    Raises:
        SumError: a value is not finite.
    """
    if not np.isfinite(values).all():
        raise SumError("an answer that is not finite cannot be summed")
    scaled = np.clip(values, -largest, largest) * (np.asarray(weights, np.float64) / step)
    return to_ring(np.rint(scaled).astype(np.int64))


def to_float(total: NDArray[np.uint32], step: Sizes = STEP) -> NDArray[np.float64]:
    """Return what a sum of :func:`to_fixed` stands for; right while it lies within ±2³¹ steps."""
    return total.view(np.int32).astype(np.float64) * step
