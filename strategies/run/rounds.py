"""The rounds of a run: one loop for every strategy, in place of Flower's ``Strategy.start``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from fedsynth.errors import RunError


@dataclass
class Round:
    """What one round did, for whoever watches.

    Attributes:
        number: 1 for the first.
        metrics: what the strategy measured.
        arrays: state after the round.
        seconds: wall time.
    """

    number: int
    metrics: MetricRecord
    arrays: ArrayRecord
    seconds: float


@dataclass
class RoundsState:
    """Where a sequence of rounds stands.

    Attributes:
        arrays: what the strategy refines: weights, or the synthetic set itself.
        train_config: passed to ``configure_train`` every round.
        observers: called after every round (progress, metrics on disk, ...).
    """

    arrays: ArrayRecord
    train_config: ConfigRecord = field(default_factory=ConfigRecord)
    observers: Sequence[Callable[[Round], None]] = ()


class RoundStrategy(Protocol):
    """What :func:`run_rounds` needs of a strategy.

    Attributes:
        num_rounds: number of the last round; a round may change it.
        patience: seconds to wait for the answers of the next round; None: as long as the grid does.
    """

    num_rounds: int
    patience: float | None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the messages of a round."""
        ...

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the state after a round, and what was measured."""
        ...


def run_rounds(strategy: RoundStrategy, grid: Grid, state: RoundsState, first_round: int = 1) -> ArrayRecord:
    """Run rounds ``first_round`` … ``strategy.num_rounds`` in place of Flower's ``Strategy.start``.

    Returns:
        The arrays after the last round; ``state.arrays`` follows along.

    Raises:
        RunError: a round had too few usable answers.
    """
    number = first_round - 1
    while number < strategy.num_rounds:
        number += 1
        start = time.monotonic()
        messages = strategy.configure_train(number, state.arrays, state.train_config, grid)
        replies = grid.send_and_receive(messages, timeout=strategy.patience)
        del messages
        arrays, metrics = strategy.aggregate_train(number, replies)
        if arrays is None:
            raise RunError(f"round {number}: no usable answer")
        state.arrays = arrays
        done = Round(number, metrics or MetricRecord(), arrays, time.monotonic() - start)
        for observe in state.observers:
            observe(done)
    return state.arrays
