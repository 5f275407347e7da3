"""Checks of models, and how several become one, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from flwr.app import Array, ArrayRecord

from fedsynth.messages import transport
from fedsynth.threads import one_thread

Shapes = Mapping[str, tuple[tuple[int, ...], str]]
"""Shape and dtype of every layer of a model, by name.

The dtype is ``floating-point`` whatever the precision, otherwise such as ``int64``.
"""

Rule = Callable[[Sequence[torch.Tensor]], torch.Tensor]
"""From the values of K models, each (n,) and read-only, to the combined values (n,) in float64; n is arbitrary."""

_CHUNK = 2**19  # numbers of all models together that are in work at once: 4 MB in float64, which caches can hold
LARGEST_WEIGHT = 1e6
"""Size of a weight or floating-point buffer from which a model is no model: networks that images are drawn from have
weights of about 1, at most some hundred. Sums, squares and products of smaller ones stay finite in single precision."""
_LARGEST_WHOLE = 2**53
"""Size of a number in a whole-number buffer: up to there float64, in which models are combined, holds all of them."""


def shapes(record: ArrayRecord) -> Shapes:
    """Return shape and dtype of every layer.

    Raises:
        ValueError: a layer cannot be read.
    """
    return {name: _shape_and_dtype(transport.peek(array)) for name, array in record.items()}


@one_thread()
def check_model(record: ArrayRecord, expected: Shapes) -> None:
    """Refuse a model that does not fit, is not finite or absurd (:data:`LARGEST_WEIGHT`), layer by layer, uncopied.

    Raises:
        ValueError: says which layer and why.
    """
    if record.keys() != expected.keys():
        raise ValueError(f"layers {sorted(record.keys() ^ expected.keys())} are missing or unknown")
    for name, array in record.items():
        layer = transport.peek(array)
        shape, dtype = _shape_and_dtype(layer)
        expected_shape, expected_dtype = expected[name]
        if shape != expected_shape:
            raise ValueError(f"layer {name} has shape {shape}, not {expected_shape}")
        if dtype != expected_dtype:
            raise ValueError(f"layer {name} holds {dtype} numbers, not {expected_dtype}")
        if problem := _size_problem(layer):
            raise ValueError(f"layer {name} {problem}")


@one_thread()
def check_combined(record: ArrayRecord) -> None:
    """Refuse what the server itself has made of sound models: a step can be too long, a training can diverge.

    Raises:
        ValueError: says which layer and why.
    """
    for name, array in record.items():
        if problem := _size_problem(transport.peek(array)):
            raise ValueError(f"layer {name} {problem}")


def weighted_mean(records: Sequence[ArrayRecord], weights: Sequence[float]) -> ArrayRecord:
    """Weighted mean of models with equal names and shapes, accumulated in float64.

    Model after model is multiplied by its share and added, each step rounded on its own: the result has the same bits
    on every machine. It depends on the order of ``records`` only by float64 rounding; callers sort them.

    Args:
        records: one model each, emptied on return.
        weights: as many positive numbers; they need not sum to 1.

    Returns:
        The mean, as :func:`combine_layers` returns it.
    """
    total = sum(weights)
    shares = [weight / total for weight in weights]
    memory = torch.empty(2, chunk_length(len(records)), dtype=torch.float64)

    def mean(values: Sequence[torch.Tensor]) -> torch.Tensor:
        summed, term = memory[:, : len(values[0])].unbind()
        summed.copy_(values[0]).mul_(shares[0])
        # No matrix product and no add_(…, alpha=…): their multiply and add may be fused, in an order of their own.
        for value, share in zip(values[1:], shares[1:], strict=True):
            summed.add_(term.copy_(value).mul_(share))
        return summed

    return combine_layers(records, mean)


@one_thread()
def combine_layers(records: Sequence[ArrayRecord], rule: Rule) -> ArrayRecord:
    """Combine models with equal names and shapes into one, coordinate by coordinate.

    Every layer is removed from the records once it is used, so that no second set of models is ever held.

    Args:
        records: one model each, emptied on return.
        rule: called with no more than :func:`chunk_length` coordinates at once.

    Returns:
        The combined model in the dtypes of the first; half precision becomes single, whole-number buffers are rounded
        to the nearest whole number (exact below 2^53).
    """
    return ArrayRecord({name: _combine_layer(name, records, rule) for name in list(records[0])})


def pop_layer(records: Sequence[ArrayRecord], name: str) -> list[torch.Tensor]:
    """Remove one layer from every record and return it, as tensors on the arrays' own bytes: not to be written to."""
    return [transport.peek(record.pop(name)) for record in records]


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


def _combine_layer(name: str, records: Sequence[ArrayRecord], rule: Rule) -> Array:
    layers = pop_layer(records, name)
    first = layers[0]
    flat = [layer.reshape(-1) for layer in layers]
    combined = torch.empty(first.shape, dtype=torch.float32 if first.dtype == torch.float16 else first.dtype)
    length = chunk_length(len(layers))
    for start in range(0, first.numel(), length):
        part = slice(start, start + length)
        values = rule([layer[part] for layer in flat])
        combined.view(-1)[part] = values if first.is_floating_point() else values.round()
    return transport.encode(combined)


def _shape_and_dtype(layer: torch.Tensor) -> tuple[tuple[int, ...], str]:
    dtype = "floating-point" if layer.is_floating_point() else str(layer.dtype).removeprefix("torch.")
    return tuple(layer.shape), dtype


def _size_problem(layer: torch.Tensor) -> str:
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
