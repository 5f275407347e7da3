"""How the samples of a round are distributed over messages of bounded size."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from fedsynth.message_size import NETWORK_BATCH

Level = tuple[int, torch.Tensor]
"""A timestep, and the indices (m,) of states there, see
:class:`strategies.cooperation.cooperative_set.CooperativeSet`."""


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
