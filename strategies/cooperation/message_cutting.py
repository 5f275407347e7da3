"""How the samples of a round are distributed over messages of bounded size."""

from __future__ import annotations

from collections.abc import Iterable

import torch

Level = tuple[int, torch.Tensor]
"""A timestep, and the indices (m,) of states there, see
:class:`strategies.cooperation.cooperative_set.CooperativeSet`."""

NETWORK_BATCH = 256
"""Samples that networks work on at a time (:func:`fedsynth.diffusion.noise_predictor`): messages are cut between two
batches, since a network's last bits depend on what else is in its batch."""


def rows_in(max_message_mb: float, numbers: int, wire_dtype: str) -> int:
    """Return how many samples fit in a message, at least 1.

    Args:
        max_message_mb: largest array data of a request or an answer, in 10^6 bytes. Flower itself sets no limit, and
            arrays travel in pieces (:mod:`fedsynth.messages.packing`). The limit is for the silo, which holds samples,
            answer and their serialised forms at once, and for what is lost with a message.
        numbers: C·H·W of a sample.
        wire_dtype: how they travel.
    """
    # A label and a timestep of 8 bytes travel with every sample.
    size = numbers * getattr(torch, wire_dtype).itemsize + 16
    return max(1, int(max_message_mb * 1e6 / size))


def cut(levels: Iterable[Level], most: int) -> list[list[Level]]:
    """Distribute samples over messages of ``most`` at most, in order, between two batches where ``most`` allows it.

    All messages are sent at once. A SuperNode takes, works on and answers one at a time, so a silo's own times add
    up; but the server reads an answer while the silo works on its next, the silo does not sit idle between two, and a
    lost message costs the samples in it alone.
    """
    messages: list[list[Level]] = []
    room = 0
    for timestep, indices in levels:
        for piece in indices.split(min(most, NETWORK_BATCH)):
            if not len(piece):
                continue
            if len(piece) > room:
                messages.append([])
                room = most
            messages[-1].append((timestep, piece))
            room -= len(piece)
    return messages
