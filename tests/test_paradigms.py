"""What the study of three ways to aggregate counts for which phase."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from summed_rounds import TINY

from experiments.paradigms import Stopwatch, measured, row


def test_time_within_something_timed_counts_for_itself_alone() -> None:
    ticks = itertools.count()
    watch = Stopwatch(now=lambda: float(next(ticks)))
    with watch.timed("move"):  # 0
        inner = watch.wrap("certify", watch.wrap("aggregate", lambda: None))
        inner()  # 1 to 4: certify, aggregate, certify
        with watch.timed("train"):  # 5 to 6
            pass
    assert watch.seconds == {"train": 1.0, "move": 3.0, "aggregate": 1.0, "certify": 2.0, "ledger": 0.0}


@pytest.mark.parametrize("aggregators", ["server", "silos"])
def test_a_round_has_the_phases_of_its_paradigm(aggregators: str, tmp_path: Path) -> None:
    settings = {**TINY, "num-clients": 2, "samples-per-client": 20, "block-out-channels": "4,4"}
    cost = measured({**settings, "aggregators": aggregators, "state-dir": str(tmp_path)}, rounds=1)
    assert all(cost.seconds[phase] > 0 for phase in ("train", "move", "aggregate"))
    assert (cost.seconds["certify"] > 0) == (aggregators == "silos")
    assert 0 < cost.alone < cost.total
    # Two silos get the weights and send them back; replicas get both updates besides, and one sends what they make.
    assert cost.down / cost.up == pytest.approx(2 if aggregators == "silos" else 1, rel=0.05)
    assert row("one", cost, cost)["ratio"] == "1.00"
