"""Models layer by layer: how their values are combined, piece by piece, in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from fedsynth.threads import one_thread

Layers = dict[str, torch.Tensor]
"""A model: tensors by name. Those that are combined are read only, and may lie on memory that cannot be written to."""

Rule = Callable[[Sequence[torch.Tensor]], torch.Tensor]
"""From the values of K models, each (n,) and read-only, to the combined values (n,) in float64; n is arbitrary."""

_CHUNK = 2**19  # numbers of all models together that are in work at once: 4 MB in float64, which caches can hold


def weighted_mean(models: Sequence[Layers], weights: Sequence[float]) -> Layers:
    """Weighted mean of models with equal names and shapes, accumulated in float64.

    Model after model is multiplied by its share and added, each step rounded on its own: the result has the same bits
    on every machine. It depends on the order of ``models`` only by float64 rounding; callers sort them.

    Args:
        models: K >= 1, emptied on return.
        weights: as many positive numbers; they need not sum to 1.

    Returns:
        The mean, as :func:`combine_layers` returns it.
    """
    total = sum(weights)
    shares = [weight / total for weight in weights]
    memory = torch.empty(2, chunk_length(len(models)), dtype=torch.float64)

    def mean(values: Sequence[torch.Tensor]) -> torch.Tensor:
        summed, term = memory[:, : len(values[0])].unbind()
        summed.copy_(values[0]).mul_(shares[0])
        # No matrix product and no add_(…, alpha=…): their multiply and add may be fused, in an order of their own.
        for value, share in zip(values[1:], shares[1:], strict=True):
            summed.add_(term.copy_(value).mul_(share))
        return summed

    return combine_layers(models, mean)


@one_thread()
def combine_layers(models: Sequence[Layers], rule: Rule) -> Layers:
    """Combine models with equal names and shapes into one, coordinate by coordinate.

    Every layer is removed from the models once it is used, so that no second set of models is ever held.

    Args:
        models: K >= 1, emptied on return.
        rule: called with no more than :func:`chunk_length` coordinates at once.

    Returns:
        The combined model in the dtypes of the first; half precision becomes single, whole-number buffers are rounded
        to the nearest whole number (exact below 2^53).
    """
    return {name: _combine_layer([model.pop(name) for model in models], rule) for name in list(models[0])}


def chunk_length(number: int) -> int:
    """Coordinates of ``number`` models that are worked on at once."""
    return max(1, _CHUNK // number)


def working_memory(number: int) -> torch.Tensor:
    """Return memory for :func:`fill` with a chunk of ``number`` models, one-dimensional, float64."""
    return torch.empty(number * chunk_length(number), dtype=torch.float64)


def fill(memory: torch.Tensor, values: Sequence[torch.Tensor]) -> torch.Tensor:
    """Copy values of K models, each (n,), to the start of ``memory`` and return that as (K, n), contiguous."""
    shape = len(values), len(values[0])
    rows = memory[: shape[0] * shape[1]].view(shape)
    for row, value in zip(rows, values, strict=True):
        row.copy_(value)
    return rows


def _combine_layer(layers: Sequence[torch.Tensor], rule: Rule) -> torch.Tensor:
    first = layers[0]
    flat = [layer.reshape(-1) for layer in layers]
    combined = torch.empty(first.shape, dtype=torch.float32 if first.dtype == torch.float16 else first.dtype)
    length = chunk_length(len(layers))
    for start in range(0, first.numel(), length):
        part = slice(start, start + length)
        values = rule([layer[part] for layer in flat])
        combined.view(-1)[part] = values if first.is_floating_point() else values.round()
    return combined
