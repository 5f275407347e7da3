"""What silos are asked in a round: messages of bounded size, and which of them an answer belongs to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from flwr.app import ArrayRecord, ConfigRecordValues, Message

from fedsynth.messages import wire

Level = tuple[int, torch.Tensor]
"""A timestep, and the places (m,) of samples there, see
:class:`strategies.cooperation.cooperative_set.CooperativeSet`."""

NETWORK_BATCH = 256
"""Samples that networks work on at a time (:func:`fedsynth.diffusion.noise_predictor`): messages are cut between two
batches, since a network's last bits depend on what else is in its batch."""


@dataclass(frozen=True)
class Question:
    """One message to one silo.

    Attributes:
        number: unlike that of every other question of the round; the answer repeats it.
        silo: position in the census.
        timestep: noise level of the samples; None: ``arrays`` have one for each.
        arrays: the samples, their labels and perhaps their timesteps.
    """

    number: int
    silo: int
    timestep: int | None
    arrays: ArrayRecord

    @property
    def config(self) -> dict[str, ConfigRecordValues]:
        """What the message says besides arrays."""
        timestep: dict[str, ConfigRecordValues] = {} if self.timestep is None else {wire.TIMESTEP: self.timestep}
        return {wire.QUESTION: self.number, **timestep}


class Asked:
    """The questions of a round, and the places that each is about."""

    def __init__(self) -> None:
        self._questions: dict[int, dict[int, tuple[int | None, torch.Tensor]]] = {}
        self._count = 0

    @property
    def num_silos(self) -> int:
        """Silos that are asked something."""
        return len(self._questions)

    def add(self, silo: int, timestep: int | None, places: torch.Tensor, arrays: ArrayRecord) -> Question:
        """Note a question about ``places``. The arrays are not kept: they are let go as soon as they are sent."""
        number = self._count
        self._count += 1
        self._questions.setdefault(silo, {})[number] = (timestep, places)
        return Question(number, silo, timestep, arrays)

    def find(self, silo: int | None, reply: Message) -> torch.Tensor:
        """Return the places of the question that an answer is about.

        A silo that repeats the question's number is believed. Without it the timestep is enough where one question
        alone was about it, and nothing is needed where there was one question alone.

        Raises:
            ValueError: the silo was asked nothing, or not this.
        """
        if silo is None or silo not in self._questions:
            raise ValueError("not asked")
        mine, metrics = self._questions[silo], wire.metrics(reply)
        number = metrics.get(wire.QUESTION)
        if number is None:
            number = self._number_of(metrics.get(wire.TIMESTEP), mine)
        # A list, which metrics may hold, cannot be looked up.
        if not isinstance(number, int) or number not in mine:
            raise ValueError(f"{wire.QUESTION} = {number}: asked {sorted(mine)}")
        _, places = mine[number]
        return places

    @staticmethod
    def _number_of(given: object, mine: dict[int, tuple[int | None, torch.Tensor]]) -> int | None:
        timesteps = sorted({timestep for timestep, _ in mine.values() if timestep is not None})
        if given is None and len(mine) == 1:
            return next(iter(mine))
        if timesteps and (not isinstance(given, int) or given not in timesteps):
            raise ValueError(f"{wire.TIMESTEP} = {given}: asked about {timesteps}")
        fitting = [number for number, (timestep, _) in mine.items() if timestep == given]
        return fitting[0] if len(fitting) == 1 else None


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
    for timestep, places in levels:
        for piece in places.split(min(most, NETWORK_BATCH)):
            if not len(piece):
                continue
            if len(piece) > room:
                messages.append([])
                room = most
            messages[-1].append((timestep, piece))
            room -= len(piece)
    return messages
