"""What a round costs where one machine, one server or eight replicas aggregate: seconds by phase, and bytes.

``python -m experiments.paradigms`` makes every row of ``paradigms.toml`` and prints the table; ``--help`` lists options
for a smaller one. Silos answer in this process one after the other, so that every second has one phase and none is
waited: *one machine* is what all of them take there, *a machine each* the longest path, on which of the silos that are
asked at once only the slowest counts. Run it on an idle machine. With ``--ledger-url`` every replicated row is measured
a second time, with a contract of its own on that Ethereum node.

Phases: *train* (steps of the networks), *aggregate* (the rule), *certify* (statements, content ids, signatures, and
whatever else an aggregator checks), *ledger* (asking the node, and sending it the round's head), *move* (everything
else: messages, arrays to bytes and back).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

from flwr.app import Message

import clients.app
import clients.replicating
import clients.training
import strategies.centralised
from experiments.benchmarks.common import machine_facts, publish
from fedsynth.api.in_process_grid import InProcessGrid
from fedsynth.api.in_process_run import begin_run
from fedsynth.averaging.rules import RULES
from fedsynth.cli.options import typed
from fedsynth.cli.sweeps.sweep_file import read_sweep
from fedsynth.config import Scalar
from fedsynth.config.run_config import without_idle_keys
from fedsynth.heads import Ledger
from fedsynth.replicas.certificates import Ballot, Chain
from fedsynth.units import human_bytes
from strategies.conversation.noted_heads import NotedHeads
from strategies.conversation.replicas import Replication

PHASES = ("train", "move", "aggregate", "certify", "ledger")
PAPER = {"Centralised": 74.1, "federated": 110.9, "blockchain": 621.8}
"""Seconds a round of the paper that these rows are after."""


@dataclass
class Stopwatch:
    """Seconds by phase; what is timed within something else counts for itself alone.

    Attributes:
        seconds: by phase.
        now: reads the clock.
    """

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    now: Callable[[], float] = time.perf_counter
    _phases: list[str] = field(default_factory=list)
    _since: float = 0.0

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Count the block for a phase."""
        self._turn()
        self._phases.append(phase)
        try:
            yield
        finally:
            self._turn()
            self._phases.pop()

    def wrap(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with its time counted for a phase."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.timed(phase):
                return function(*args, **kwargs)

        return timed

    def _turn(self) -> None:
        now = self.now()
        if self._phases:
            self.seconds[self._phases[-1]] += now - self._since
        self._since = now


class TimedGrid(InProcessGrid):
    """Notes how long every silo works on every kind of message."""

    def __init__(self, flat: dict[str, Any], number: int) -> None:
        super().__init__(clients.app.app, flat, number)
        self.worked: dict[str, list[float]] = {}

    def _answer(self, message: Message) -> str:
        start = time.perf_counter()
        number = super()._answer(message)
        self.worked.setdefault(message.metadata.message_type, []).append(time.perf_counter() - start)
        return number

    def saved(self) -> float:
        """Return the seconds that a machine for every silo would have saved since the last call."""
        saved = sum(sum(seconds) - max(seconds) for seconds in self.worked.values())
        self.worked = {}
        return saved


@dataclass(frozen=True)
class Cost:
    """What a round costs in the middle.

    Attributes:
        seconds: by phase, on one machine.
        alone: seconds with a machine for every silo.
        down: bytes from the server to silos.
        up: bytes from silos to the server.
    """

    seconds: Mapping[str, float]
    alone: float
    down: float
    up: float

    @property
    def total(self) -> float:
        """Seconds on one machine."""
        return sum(self.seconds.values())


def measured(settings: Mapping[str, Scalar], rounds: int) -> Cost:
    """Run some rounds after one that does not count.

    Args:
        settings: configuration keys that are not left at their defaults.
        rounds: that count, at least 1.
    """
    grids: list[TimedGrid] = []

    def make(flat: dict[str, Scalar], number: int) -> TimedGrid:
        grids.append(TimedGrid(flat, number))
        return grids[0]

    run = begin_run(settings, silos=make)
    watch, arrays = Stopwatch(), run.arrays
    found: list[tuple[dict[str, float], float, int, int]] = []
    with _timed_phases(watch, run.strategy):
        for number in range(1, rounds + 2):
            watch.seconds = dict.fromkeys(PHASES, 0.0)
            grids[0].saved()
            down, up = run.exchange.traffic.down, run.exchange.traffic.up
            with watch.timed("move"):
                arrays, _ = run.strategy.run_round(number, arrays, run.exchange)
            total, traffic = sum(watch.seconds.values()), run.exchange.traffic
            found.append((watch.seconds, total - grids[0].saved(), traffic.down - down, traffic.up - up))
    seconds, alone, down_bytes, up_bytes = zip(*found[1:], strict=True)
    return Cost(
        {phase: median(one[phase] for one in seconds) for phase in PHASES},
        median(alone),
        median(down_bytes),
        median(up_bytes),
    )


@contextmanager
def _timed_phases(watch: Stopwatch, strategy: Any) -> Iterator[None]:
    """Count, within the block, the phases of whatever strategy this is."""
    rules = {name: watch.wrap("aggregate", rule) for name, rule in RULES.items()}
    phases: dict[str, list[tuple[Any, str]]] = {
        "train": [(clients.training, "train_round"), (strategies.centralised, "train")],
        "aggregate": [(strategy, "combine")] if hasattr(strategy, "combine") else [],
        "certify": [
            *((clients.replicating, name) for name in ("aggregate", "replica_of")),
            (clients.replicating.Replica, "signed_update"),
            *((Replication, name) for name in ("terms", "check_update")),
            (Ballot, "add"),
            (Chain, "follow"),
        ],
    }
    phases["ledger"] = [(NotedHeads, "add")]
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(clients.replicating, "RULES", rules))
        for phase, places in phases.items():
            for place, name in places:
                stack.enter_context(mock.patch.object(place, name, watch.wrap(phase, getattr(place, name))))
        yield


def row(name: str, cost: Cost, first: Cost) -> dict[str, str]:
    """Return the cells of a table, with ratios to the first row."""
    return {
        "method": name,
        "seconds a round, one machine": f"{cost.total:.2f}",
        **{phase: f"{seconds:.2f}" for phase, seconds in cost.seconds.items()},
        "ratio": f"{cost.total / first.total:.2f}",
        "seconds, a machine each": f"{cost.alone:.2f}",
        "ratio, a machine each": f"{cost.alone / first.alone:.2f}",
        "down / up a round": f"{human_bytes(round(cost.down))} / {human_bytes(round(cost.up))}",
    }


def main() -> None:
    """Measure every row, and publish the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", type=Path, default=Path(__file__).with_name("paradigms.toml"))
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count, after one that does not")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="configuration keys of all rows")
    parser.add_argument("--ledger-url", default="", metavar="URL", help="an Ethereum node, with an account of its own")
    parser.add_argument("--output-dir", type=Path, default=Path("results/paradigms"))
    options = parser.parse_args()
    given = typed(dict(pair.split("=", 1) for pair in options.set))
    costs: dict[str, Cost] = {}
    for planned in read_sweep(options.sweep, given).runs:
        settings = {planned.row: without_idle_keys(planned.config.to_run_config())}
        if options.ledger_url and planned.config.replicated:
            contract = Ledger(options.ledger_url).deploy(timeout=60.0)
            ledger = {"ledger-url": options.ledger_url, "ledger-contract": contract}
            settings[f"{planned.row}, ledger"] = {**settings[planned.row], **ledger}
        for name, flat in settings.items():
            costs[name] = measured(flat, options.rounds)
            print(row(name, costs[name], next(iter(costs.values()))), flush=True)
    rows = [row(name, cost, next(iter(costs.values()))) for name, cost in costs.items()]
    details = {
        name: {**cost.seconds, "alone": cost.alone, "down": cost.down, "up": cost.up} for name, cost in costs.items()
    }
    publish("paradigms", machine_facts() | {"rounds": options.rounds}, rows, details, options.output_dir)
    base = PAPER["Centralised"]
    print("the paper: " + ", ".join(f"{name} {seconds} s ({seconds / base:.2f})" for name, seconds in PAPER.items()))


if __name__ == "__main__":
    main()
