"""Runs of averaging in this process whose messages a test may change, lose and look at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from flwr.app import Error, Message

import clients.app
from fedsynth.api.in_process_grid import InProcessGrid
from fedsynth.api.in_process_run import InProcessRun, begin_run
from fedsynth.config import Scalar
from fedsynth.messages import transport

TINY: dict[str, Scalar] = {
    "alpha": 1000.0,
    "block-out-channels": "8,8",
    "layers-per-block": 1,
    "num-clients": 4,
    "num-rounds": 2,
    "num-samples": 4,
    "sampling-steps": 2,
    "samples-per-client": 60,
    "strategy": "fedavg",
    "train-steps": 2,
}
Hook = Callable[[str, int, Message], None]


class LostError(Exception):
    """Raised by a hook: the silo does not get the message."""


class HookedGrid(InProcessGrid):
    """Calls ``hook(kind, silo, question)`` before a silo is asked, and keeps what crossed."""

    def __init__(self, flat: dict[str, Scalar], number: int, hook: Hook) -> None:
        super().__init__(clients.app.app, flat, number)
        self.crossed: list[tuple[str, int, Message]] = []
        self._hook = hook

    def _answer(self, message: Message) -> str:
        kind, silo = message.metadata.message_type, message.metadata.dst_node_id - 100
        try:
            self._hook(kind, silo, message)
            number = super()._answer(message)
        except LostError:
            number = str(next(self._numbers))
            message.metadata.__dict__["_message_id"] = number
            self._answers[number] = Message(Error(code=0, reason="gone"), reply_to=message)
        self.crossed.append((kind, silo, self._answers[number]))
        return number

    def asked(self, kind: str) -> list[int]:
        """Silos that were asked something, in order."""
        return [silo for asked, silo, _ in self.crossed if asked == kind]


def begin(
    folder: Path, hook: Hook = lambda kind, silo, question: None, **changes: Scalar
) -> tuple[InProcessRun, HookedGrid]:
    settings = {**TINY, "state-dir": str(folder), **{key.replace("_", "-"): value for key, value in changes.items()}}
    grids: list[HookedGrid] = []

    def make(flat: dict[str, Scalar], number: int) -> HookedGrid:
        grids.append(HookedGrid(flat, number, hook))
        return grids[0]

    return begin_run(settings, silos=make), grids[0]


def after_rounds(run: InProcessRun, rounds: int = 1) -> dict[str, torch.Tensor]:
    """Weights after the first rounds of a run, by layer."""
    arrays = run.arrays
    for number in range(1, rounds + 1):
        arrays, _ = run.strategy.run_round(number, arrays, run.exchange)
    return transport.decode_tensors(arrays)


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)
