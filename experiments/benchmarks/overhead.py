"""CPU seconds of a cooperative round besides the networks: ``python -m experiments.benchmarks.overhead``.

A run whose silos answer in this process, and the same moves without any message (:mod:`experiments.benchmarks.plain`),
on one thread. Unlike wall time, CPU time can be compared on a busy machine. What only real processes add is not in it:
Ray, the tenth of a second at which Flower's simulation looks for messages, workers that wait for the last silo.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from diffusers import UNet2DModel

from experiments.benchmarks.common import in_fresh_process, machine_facts, publish
from experiments.benchmarks.plain import PlainMixture, cooperative_inference
from fedsynth.api.in_process_grid import InProcessGrid
from fedsynth.api.in_process_run import begin_run
from fedsynth.config import Scalar


@dataclass
class RoundCost:
    """CPU seconds of a round: medians without the first, of a plain process means.

    Attributes:
        networks: evaluating the silos' networks.
        silos: what silos do besides: reading questions, writing answers.
        server: cutting, screening, composing, moving.
    """

    networks: float
    silos: float
    server: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.networks + self.silos + self.server


def main() -> None:
    """Measure both and print them as one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-samples", type=int, default=500, help="synthetic images (default: 500)")
    parser.add_argument("--rounds", type=int, default=12, help="noise levels (default: 12)")
    parser.add_argument("--output", type=Path, help="folder for overhead.md and overhead.json (default: only print)")
    options = parser.parse_args()
    facts = machine_facts()
    with tempfile.TemporaryDirectory(prefix="fedsynth-overhead-") as models:
        settings: dict[str, Scalar] = {
            "strategy": "dfd",
            "dataset": "digits",
            "num-clients": 10,
            "device": "cpu",
            "num-samples": options.num_samples,
            "dfd-rounds": options.rounds,
            "train-steps": 20,
            "state-dir": models,
        }
        costs = {
            "as messages, screened": in_fresh_process(_in_messages, settings),
            "as messages": in_fresh_process(_in_messages, {**settings, "screening": False}),
            "without messages": in_fresh_process(_plain, settings),
        }
    rows = [_row(name, cost, costs["without messages"]) for name, cost in costs.items()]
    publish("overhead", facts, rows, {name: vars(cost) for name, cost in costs.items()}, options.output)


def _in_messages(settings: dict[str, Scalar]) -> RoundCost:
    torch.set_num_threads(1)
    run = begin_run(settings)
    marks: list[tuple[float, float, float]] = []
    with _timed(UNet2DModel, "forward") as networks, _timed(InProcessGrid, "_answer") as silos:
        run.rounds(lambda _: marks.append((time.process_time(), silos[0], networks[0])))
    spent = [[after - before for before, after in zip(*pair, strict=True)] for pair in pairwise(marks)]
    total, at_silos, in_networks = (statistics.median(column) for column in zip(*spent, strict=True))
    return RoundCost(in_networks, at_silos - in_networks, total - at_silos)


def _plain(settings: dict[str, Scalar]) -> RoundCost:
    run = begin_run({**settings, "screening": False})
    with _timed(UNet2DModel, "forward") as networks, _timed(PlainMixture, "move") as moves:
        levels = len(cooperative_inference(run.task.config.to_run_config(), 1).seconds)
    return RoundCost(networks[0] / levels, 0.0, (moves[0] - networks[0]) / levels)


@contextmanager
def _timed(owner: type, name: str) -> Iterator[list[float]]:
    """Give a list whose one number is the CPU seconds spent in a method."""
    spent = [0.0]
    method: Callable[..., Any] = getattr(owner, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        begun = time.process_time()
        try:
            return method(*args, **kwargs)
        finally:
            spent[0] += time.process_time() - begun

    with mock.patch.object(owner, name, timed):
        yield spent


def _row(name: str, cost: RoundCost, plain: RoundCost) -> dict[str, str]:
    parts = {"networks": cost.networks, "silos besides": cost.silos, "server": cost.server, "round": cost.total}
    shown = {f"{part}, ms": f"{1000 * seconds:.1f}" for part, seconds in parts.items()}
    # Networks cost the same in each: their differences are the machine's.
    ratio = 1 + (cost.silos + cost.server - plain.server) / (plain.networks + plain.server)
    return {"ten silos": name, **shown, "ratio, networks taken as equal": f"{ratio:.3f}"}


if __name__ == "__main__":
    main()
