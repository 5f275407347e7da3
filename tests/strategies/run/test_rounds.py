from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from flwr.app import ArrayRecord, MetricRecord
from hand_made import StubGrid

from fedsynth.errors import RunError
from fedsynth.messages import transport
from strategies.conversation.exchange import Exchange
from strategies.run.rounds import Round, run_rounds

NOBODY = Exchange(StubGrid([]), 1.0)


class Counting:
    """A strategy whose array holds the sum of the round numbers it has seen; ``changes`` sets the last round."""

    def __init__(self, num_rounds: int, changes: dict[int, int] | None = None) -> None:
        self.num_rounds, self.changes, self.seen = num_rounds, changes or {}, list[int]()

    def run_round(self, server_round: int, arrays: ArrayRecord, exchange: Exchange) -> tuple[ArrayRecord, MetricRecord]:
        assert exchange is NOBODY
        if server_round == 9:
            raise RunError("round 9: no usable answer")
        self.seen.append(server_round)
        self.num_rounds = self.changes.get(server_round, self.num_rounds)
        total = float(transport.decode(arrays["sum"])) + server_round
        return transport.encode_tensors({"sum": torch.tensor(total)}), MetricRecord({"total": total})


def total_of(arrays: ArrayRecord) -> float:
    return float(transport.decode(arrays["sum"]))


def start() -> ArrayRecord:
    return transport.encode_tensors({"sum": torch.tensor(0.0)})


@pytest.mark.parametrize(("first", "total"), [(1, 15.0), (3, 12.0), (6, 0.0)])
def test_rounds_run_from_the_first_asked_for_to_the_last(first: int, total: float) -> None:
    strategy = Counting(5)
    assert total_of(run_rounds(strategy, NOBODY, start(), first_round=first)) == total
    assert strategy.seen == list(range(first, 6))


def test_a_round_may_ask_for_further_ones() -> None:
    strategy = Counting(2, {2: 4, 4: 3})
    run_rounds(strategy, NOBODY, start())
    assert strategy.seen == [1, 2, 3, 4]


def test_observers_see_every_round_in_turn() -> None:
    seen: list[tuple[str, int, object, float]] = []

    def watch(name: str) -> Callable[[Round], None]:
        def observe(done: Round) -> None:
            assert done.seconds >= 0
            seen.append((name, done.number, done.metrics["total"], total_of(done.arrays)))

        return observe

    run_rounds(Counting(2), NOBODY, start(), [watch("a"), watch("b")])
    assert seen == [("a", 1, 1.0, 1.0), ("b", 1, 1.0, 1.0), ("a", 2, 3.0, 3.0), ("b", 2, 3.0, 3.0)]


def test_a_round_that_fails_ends_the_run_after_those_before_it_were_seen() -> None:
    seen: list[int] = []
    with pytest.raises(RunError, match="round 9"):
        run_rounds(Counting(12), NOBODY, start(), [lambda done: seen.append(done.number)])
    assert seen == list(range(1, 9))
