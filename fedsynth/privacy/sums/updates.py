"""Sums of updates: what training has changed in each layer of a model, as whole numbers with a range for each layer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fedsynth.privacy.sums.fixed_point import to_fixed, to_float
from fedsynth.privacy.sums.terms import SumError

STEPS = 2.0**30
"""Steps from 0 to the range of a layer. A mean, whose weights add up to 1, takes half of what 32 bits can hold: the
rest is for the rounding of all silos' numbers."""
_ROUNDING = 1e-6
"""Weights travel in single precision."""


def range_of(layer: torch.Tensor) -> float:
    """Return the size to which an update of a layer is clamped.

    The power of two that is not below twice the layer's largest weight, nor below 1. More than that no round of a
    training that has not diverged changes a weight by; biases that are all 0 at first are moved by less than 1.
    """
    largest = float(layer.abs().max()) if layer.numel() else 0.0
    return 2.0 ** math.ceil(math.log2(max(1.0, 2 * largest)))


def check_total_weights(rows: Sequence[Sequence[float]]) -> None:
    """Refuse weights that add up to more than 1 in a group: the sum could leave what 32 bits can hold.

    Args:
        rows: of every silo, in every group.

    Raises:
        SumError: names the group by its index.
    """
    for group, column in enumerate(zip(*rows, strict=True)):
        if sum(column) > 1 + _ROUNDING * len(column):
            raise SumError(f"group {group}: weights add up to {sum(column):.3f}, 1 is the most")


def encode_updates(
    updates: Sequence[torch.Tensor], weights: Sequence[float], ranges: Sequence[float]
) -> NDArray[np.uint32]:
    """Return updates, clamped and weighted, one layer after the other, as numbers modulo 2³².

    Args:
        updates: of every layer, of any shapes.
        weights: the silo's in every layer, 0 to 1.
        ranges: of every layer; a step is range / :data:`STEPS`.

    Raises:
        SumError: an update is not finite.
    """
    layers = zip(updates, weights, ranges, strict=True)
    return np.concatenate(
        [to_fixed(update.double().cpu().numpy(), weight, size, size / STEPS).ravel() for update, weight, size in layers]
    )


def decode_sum(
    numbers: NDArray[np.uint32], shapes: Sequence[Sequence[int]], ranges: Sequence[float]
) -> list[torch.Tensor]:
    """Return the sum that :func:`encode_updates` of several silos have, layer by layer, float64.

    Each number is off by half a step a silo at most.

    Args:
        numbers: modulo 2³².
        shapes: of every layer.
        ranges: of every layer.
    """
    layers, start = [], 0
    for shape, size in zip(shapes, ranges, strict=True):
        end = start + math.prod(shape)
        layers.append(torch.from_numpy(to_float(numbers[start:end], size / STEPS)).reshape(tuple(shape)))
        start = end
    return layers
