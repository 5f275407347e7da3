"""Checks of models, and how several become one, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from flwr.app import ArrayRecord

from fedsynth import averaging
from fedsynth.averaging import Layers
from fedsynth.averaging.checks import shape_and_dtype, size_problem
from fedsynth.messages import transport
from fedsynth.threads import one_thread

Shapes = Mapping[str, tuple[tuple[int, ...], str]]
"""Shape and dtype of every layer of a model, by name.

The dtype is ``floating-point`` whatever the precision, otherwise such as ``int64``.
"""


def shapes(record: ArrayRecord) -> Shapes:
    """Return shape and dtype of every layer.

    Raises:
        ValueError: a layer cannot be read.
    """
    return {name: shape_and_dtype(transport.peek(array)) for name, array in record.items()}


@one_thread()
def check_model(record: ArrayRecord, expected: Shapes) -> None:
    """Refuse a model that does not fit, is not finite or absurd, layer by layer, uncopied.

    See :data:`fedsynth.averaging.checks.LARGEST_WEIGHT`.

    Raises:
        ValueError: says which layer and why.
    """
    if record.keys() != expected.keys():
        raise ValueError(f"layers {sorted(record.keys() ^ expected.keys())} are missing or unknown")
    for name, array in record.items():
        layer = transport.peek(array)
        shape, dtype = shape_and_dtype(layer)
        expected_shape, expected_dtype = expected[name]
        if shape != expected_shape:
            raise ValueError(f"layer {name} has shape {shape}, not {expected_shape}")
        if dtype != expected_dtype:
            raise ValueError(f"layer {name} holds {dtype} numbers, not {expected_dtype}")
        if problem := size_problem(layer):
            raise ValueError(f"layer {name} {problem}")


@one_thread()
def check_combined(record: ArrayRecord) -> None:
    """Refuse what the server itself has made of sound models: a step can be too long, a training can diverge.

    Raises:
        ValueError: says which layer and why.
    """
    for name, array in record.items():
        if problem := size_problem(transport.peek(array)):
            raise ValueError(f"layer {name} {problem}")


def combined(records: Sequence[ArrayRecord], rule: Callable[[Sequence[Layers]], Layers]) -> ArrayRecord:
    """Combine models with equal names and shapes by a rule of :mod:`fedsynth.averaging`.

    Args:
        records: one model each, emptied on return.
        rule: gets the models on the records' own bytes.
    """
    return encoded(rule([emptied(record) for record in records]))


def encoded(model: Layers) -> ArrayRecord:
    """Return the record of a model, which is emptied."""
    return ArrayRecord({name: transport.encode(model.pop(name)) for name in list(model)})


def weighted_mean(records: Sequence[ArrayRecord], weights: Sequence[float]) -> ArrayRecord:
    """As :func:`fedsynth.averaging.weighted_mean`, of records."""
    return combined(records, lambda models: averaging.weighted_mean(models, weights))


def emptied(record: ArrayRecord) -> Layers:
    """Return a model as :func:`~fedsynth.messages.transport.peek_tensors`, and leave an empty record."""
    return {name: transport.peek(record.pop(name)) for name in list(record)}
