"""Which numbers can be a model's."""

from __future__ import annotations

import math

import torch

LARGEST_WEIGHT = 1e6
"""Size of a weight or floating-point buffer from which a model is no model: networks that images are drawn from have
weights of about 1, at most some hundred. Sums, squares and products of smaller ones stay finite in single precision."""
_LARGEST_WHOLE = 2**53
"""Size of a number in a whole-number buffer: up to there float64, in which models are combined, holds all of them."""


def shape_and_dtype(layer: torch.Tensor) -> tuple[tuple[int, ...], str]:
    """Return a layer's shape, and ``floating-point`` whatever the precision, otherwise such as ``int64``."""
    dtype = "floating-point" if layer.is_floating_point() else str(layer.dtype).removeprefix("torch.")
    return tuple(layer.shape), dtype


def size_problem(layer: torch.Tensor) -> str:
    """Say what is wrong with the numbers of a layer; empty if nothing."""
    if not layer.numel():
        return ""
    # Not isfinite().all(): many times slower, and it makes a mask. aminmax passes NaN on, which is in no range.
    ends = [end.item() for end in layer.aminmax()]
    if not all(map(math.isfinite, ends)):
        return "is not finite"
    most = LARGEST_WEIGHT if layer.is_floating_point() else _LARGEST_WHOLE
    largest = max(map(abs, ends))
    return f"holds a number of size {largest:.3g}: must be <= {most:.3g}" if largest > most else ""
