"""Numbers as whole multiples of 2⁻¹⁶ modulo 2³²: what masks can be added to without a trace of rounding."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedsynth.privacy.sums.terms import SumError

STEP = 2.0**-16
"""Distance of two neighbouring numbers: a rounded one is off by half of it."""
LARGEST = 32.0
"""Size to which a number is clamped before it is weighted; noise predictions were 10.3 at most."""


def to_fixed(values: NDArray[np.floating], weights: NDArray[np.floating] | float = 1.0) -> NDArray[np.uint32]:
    """Return ``weights`` times ``values``, which are clamped to ±:data:`LARGEST`, as whole multiples of :data:`STEP`.

    Args:
        values: finite numbers, of any shape.
        weights: 0 to 1, of a shape that broadcasts to theirs.

    Raises:
        SumError: a value is not finite.
    """
    if not np.isfinite(values).all():
        raise SumError("an answer that is not finite cannot be summed")
    scaled = np.clip(values, -LARGEST, LARGEST) * (np.asarray(weights, np.float64) / STEP)
    fixed: NDArray[np.uint32] = np.rint(scaled).astype(np.int64).astype(np.uint32)
    return fixed


def to_float(total: NDArray[np.uint32]) -> NDArray[np.float64]:
    """Return what a sum of :func:`to_fixed` stands for; right while it lies within ±2¹⁵ (weights that add up to 1)."""
    return total.view(np.int32).astype(np.float64) * STEP
