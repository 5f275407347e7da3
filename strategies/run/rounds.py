"""The rounds of a run: one loop for every strategy, in place of Flower's ``Strategy.start``."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from flwr.app import ArrayRecord, MetricRecord

from strategies.conversation.exchange import Exchange


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


Observer = Callable[[Round], None]
"""Called after every round (progress, metrics on disk, ...)."""


class RoundStrategy(Protocol):
    """What :func:`run_rounds` needs of a strategy.

    Attributes:
        num_rounds: number of the last round; a round may change it.
    """

    num_rounds: int

    def run_round(self, server_round: int, arrays: ArrayRecord, exchange: Exchange) -> tuple[ArrayRecord, MetricRecord]:
        """Ask the silos, and return the state after the round and what was measured."""
        ...


def run_rounds(
    strategy: RoundStrategy,
    exchange: Exchange,
    arrays: ArrayRecord,
    observers: Sequence[Observer] = (),
    first_round: int = 1,
) -> ArrayRecord:
    """Run rounds ``first_round`` … ``strategy.num_rounds``, each from the arrays that the one before left.

    Args:
        strategy: what a round is.
        exchange: the silos.
        arrays: what the strategy refines: weights, or the synthetic set itself.
        observers: called after every round.
        first_round: 1 for a new run.

    Raises:
        RunError: a round had too few usable answers.
    """
    number = first_round - 1
    while number < strategy.num_rounds:
        number += 1
        start = time.monotonic()
        arrays, metrics = strategy.run_round(number, arrays, exchange)
        done = Round(number, metrics, arrays, time.monotonic() - start)
        for observe in observers:
            observe(done)
    return arrays
