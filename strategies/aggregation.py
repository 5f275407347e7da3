"""Averages of models, one layer at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flwr.app import Array, ArrayRecord

from fedsynth import wire

Shapes = Mapping[str, tuple[int, ...]]
"""Shape of every layer of a model, by name."""


def shapes(record: ArrayRecord) -> Shapes:
    """Return the shape of every layer."""
    return {name: tuple(array.shape) for name, array in record.items()}


def check_model(record: ArrayRecord, expected: Shapes) -> None:
    """Refuse a model that does not fit or is not finite, one layer at a time.

    Raises:
        ValueError: says which layer and why.
    """
    if record.keys() != expected.keys():
        raise ValueError(f"layers {sorted(record.keys() ^ expected.keys())} are missing or unknown")
    for name, array in record.items():
        layer = wire.decode(array)
        if layer.shape != expected[name]:
            raise ValueError(f"layer {name} has shape {tuple(layer.shape)}, not {expected[name]}")
        if not layer.isfinite().all():
            raise ValueError(f"layer {name} is not finite")


def weighted_mean(records: Sequence[ArrayRecord], weights: Sequence[float]) -> ArrayRecord:
    """Weighted mean of models with equal names and shapes, accumulated in float64, in the dtype of the first.

    The result depends on the order of ``records`` only by float64 rounding; callers sort them. Every layer is
    removed from the records once it is used, so that no second set of models is ever held.

    Args:
        records: one model each, emptied on return.
        weights: as many positive numbers; they need not sum to 1.

    Returns:
        The mean; whole-number buffers are rounded to the nearest whole number.
    """
    total = float(sum(weights))
    return ArrayRecord({name: _mean_layer(name, records, weights, total) for name in list(records[0])})


def _mean_layer(name: str, records: Sequence[ArrayRecord], weights: Sequence[float], total: float) -> Array:
    first = wire.decode(records[0].pop(name))
    mean = first.double() * (weights[0] / total)
    for record, weight in zip(records[1:], weights[1:], strict=True):
        mean.add_(wire.decode(record.pop(name)), alpha=weight / total)
    if not first.is_floating_point():
        mean = mean.round()
    return wire.encode(mean.to(first.dtype))
