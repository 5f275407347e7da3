"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685): which layers have one, under which names and shapes.

A layer with weights W (out, in) or, of a convolution, (out, in, k, k) answers W x + B A x, with A (r, in) or (r, in, k,
k) and B (out, r) or (out, r, 1, 1). Known from the layers' shapes alone: nothing here needs a network or peft.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

A, B = ".lora_A.weight", ".lora_B.weight"
"""What follows the layer's name in that of an adapter's factor, as peft and diffusers have it."""

Shape = tuple[int, ...]
_OF_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


def adapted_layers(weights: Mapping[str, Sequence[int]], targets: str) -> dict[str, Shape]:
    """Return by name the layers that have an adapter, with the shape of their weights.

    Args:
        weights: shape of every tensor of the network, by state dict name.
        targets: ``attention``, the projections of queries, keys, values and output; or ``all``, every linear layer and
            convolution.
    """
    layers = {
        name.removesuffix(".weight"): tuple(shape)
        for name, shape in weights.items()
        if name.endswith(".weight") and len(shape) in (2, 4)
    }
    if targets == "all":
        return layers
    return {name: shape for name, shape in layers.items() if name.endswith(tuple(f".{last}" for last in _OF_ATTENTION))}


def factor_shapes(layers: Mapping[str, Shape], rank: int, frozen_a: bool = False) -> dict[str, Shape]:
    """Return by name the shape of every factor that is trained.

    Args:
        layers: as of :func:`adapted_layers`.
        rank: r >= 1.
        frozen_a: whether B alone is trained.
    """
    found: dict[str, Shape] = {}
    for name, (outputs, *inputs) in layers.items():
        if not frozen_a:
            found[name + A] = (rank, *inputs)
        found[name + B] = (outputs, rank, *(1 for _ in inputs[1:]))
    return found


def most_rank(layer: Shape) -> int:
    """Return the rank above which no product B A goes: that of the layer's weights as a matrix."""
    return min(layer[0], math.prod(layer[1:]))
