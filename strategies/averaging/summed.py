"""Rounds of averaging in which the server sees sums of the silos' updates: one mean model takes all answers' place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from fedsynth.messages import MaskedTrainRequest, TrainRequest, transport
from fedsynth.messages.transport import Arrays
from fedsynth.mixture.screening import bound_weights
from fedsynth.privacy.sums.terms import LARGEST_SHARE
from fedsynth.privacy.sums.updates import decode_sum, range_of
from strategies.conversation.census import Census
from strategies.conversation.secure_sum import Common, SecureSum

SUMS_ONLY = (
    "secure-aggregation: the server could read sums of the silos' updates and no single one; it could not screen them,"
    " and no losses are known; a sum by itself is no differential privacy"
)
"""What the reader of the dataset is told."""


@dataclass(frozen=True)
class MeanUpdate:
    """What a sum leaves.

    Attributes:
        arrays: the received weights plus the survivors' weighted mean update, floating-point layers in float64.
        survivors: names of the silos in it.
        seconds: that silos worked.
    """

    arrays: Arrays
    survivors: tuple[str, ...]
    seconds: float


def sum_weights(census: Census, reporting: Sequence[Sequence[bool]]) -> torch.Tensor:
    """Return the silos' weights in every group, float32 (K, G), as they travel: by number of images, none above half.

    What a silo has above half goes to the others in proportion to theirs.

    Args:
        census: the silos.
        reporting: whether each of them answers for each group, (K, G).
    """
    counts = torch.tensor([member.num_examples for member in census], dtype=torch.float64)
    return bound_weights(counts[:, None] * torch.tensor(reporting, dtype=torch.float64), LARGEST_SHARE).float()


def mean_update(
    sums: SecureSum,
    question: TrainRequest,
    weights: torch.Tensor,
    part_index: Mapping[str, int],
    parts: Sequence[str] = (),
    timeout: float | None = None,
    needed: int = 0,
) -> MeanUpdate:
    """Have the silos train, and return the mean of their weights.

    Args:
        sums: of the run.
        question: what each silo would be asked by itself.
        weights: of every silo of the census in every group, (K, G).
        part_index: group of every layer.
        parts: of the network, a group each; empty: one group.
        timeout: seconds to wait for answers; None: ``reply-timeout``.
        needed: silos that must answer, where that is more than the sum needs.

    Raises:
        RunError: as :meth:`SecureSum.sum`.
    """
    received = transport.decode_tensors(question.arrays)
    layers = {name: layer for name, layer in received.items() if layer.is_floating_point()}
    ranges = tuple(range_of(layer) for layer in layers.values())

    def build(common: Common) -> MaskedTrainRequest:
        return MaskedTrainRequest(**question.training_round(), ranges=ranges, parts=tuple(parts), **common)

    what = f"round {question.server_round}"
    summed = sums.sum(what, question.server_round, weights, build, timeout, needed)
    totals = summed.weights.double().sum(0).tolist()
    changes = decode_sum(summed.numbers, [layer.shape for layer in layers.values()], ranges)
    moved = {
        name: layer.double() + change / totals[part_index[name]]
        for (name, layer), change in zip(layers.items(), changes, strict=True)
    }
    arrays = transport.encode_tensors({**received, **moved})
    return MeanUpdate(arrays, summed.survivors, summed.seconds)
