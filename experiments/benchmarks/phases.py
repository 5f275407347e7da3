"""Where the time of a run goes: ``python -m experiments.benchmarks.phases [--quick] [--output FOLDER]``.

(1) ``fedsynth run`` with ten silos of digits, by phase, beside one process that trains the same models, makes the same
    moves and measures the same set without Flower, with torch's default threads. What is left of the command's time is
    the start and the end of SuperLink, simulation and Ray; of the process's, its imports.
(2) A cooperative round of these two runs: median, the first left out, in which workers load the models.
(3) A round of federated averaging against as many training steps in one process.

Training is short, so that all of it ends within five minutes on two idle cores; ``--full`` has the run of (1) as long
as ``make run``. On a busy machine ratios mean little: processes wait for each other.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from experiments.benchmarks.common import in_fresh_process, machine_facts, publish
from experiments.benchmarks.flower_runs import synthesise
from experiments.benchmarks.plain import PlainRun, training, whole_run
from fedsynth.config import Scalar
from fedsynth.output import RunFolder

Settings = dict[str, Scalar]

_SIZES: dict[str, Settings] = {
    "quick": {"train-steps": 10, "num-samples": 40, "dfd-rounds": 5, "evaluate": False, "screening": False},
    "default": {"train-steps": 100, "num-samples": 500, "dfd-rounds": 20},
    "full": {},
}
_COMMON: Settings = {"dataset": "digits", "num-clients": 10, "device": "cpu"}
_AIMS = {"cooperative round": "<= 1.15", "averaging round": "<= 1.0", "whole run": "<= 1.15"}


def main() -> None:
    """Measure everything and print it as one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", dest="size", action="store_const", const="quick", help="tiny: shows that it works")
    size.add_argument("--full", dest="size", action="store_const", const="full", help="training as in make run")
    parser.add_argument("--output", type=Path, help="folder for phases.md and phases.json (default: only print)")
    options = parser.parse_args()
    size_name = options.size or "default"
    facts = machine_facts()
    with tempfile.TemporaryDirectory(prefix="fedsynth-phases-") as scratch:
        whole = _whole(Path(scratch), _SIZES[size_name])
        averaging = _averaging(Path(scratch), 2 if size_name == "quick" else 3, 5 if size_name == "quick" else 45)
    rows = [_row(phase, *seconds) for phase, seconds in whole.items()]
    rows.append(_row("averaging round", *averaging))
    publish("phases", facts, rows, {**whole, "averaging round": averaging}, options.output)


def _whole(scratch: Path, sizes: Settings) -> dict[str, tuple[float | None, float | None]]:
    """Return seconds through Flower and in one process of every phase, of all, and of a cooperative round."""
    begun = time.monotonic()
    run = synthesise(scratch, "dfd", {**_COMMON, "strategy": "dfd", **sizes})
    flower_total = time.monotonic() - begun
    flower = _phases_of(run)
    begun = time.monotonic()
    plain_run, plain = in_fresh_process(whole_run, _resolved(run), None, scratch / "plain")
    plain_total = time.monotonic() - begun
    flower |= {"rest": flower_total - sum(flower.values())}
    plain |= {"rest": plain_total - sum(plain.values())}
    found: dict[str, tuple[float | None, float | None]] = {
        phase: (flower.get(phase), plain.get(phase)) for phase in flower
    }
    found["whole run"] = (flower_total, plain_total)
    found["cooperative round"] = (_median_round(run), _steady(plain_run))
    return found


def _averaging(scratch: Path, rounds: int, steps: int) -> tuple[float, float]:
    lengths: Settings = {"num-samples": 10, "num-rounds": rounds, "train-steps": steps * rounds, "evaluate": False}
    run = synthesise(scratch, "fedavg", {**_COMMON, "strategy": "fedavg", **lengths})
    return _median_round(run), _steady(in_fresh_process(training, _resolved(run), 1, None))


def _phases_of(run: RunFolder) -> dict[str, float]:
    results = run.read_results()
    assert results is not None
    seconds = {str(phase): float(spent) for phase, spent in results["seconds-by-phase"].items()}
    # Results are written when measuring ends.
    return seconds | {"report": run.report.stat().st_mtime - run.results.stat().st_mtime}


def _resolved(run: RunFolder) -> Settings:
    return dict(json.loads(run.config.read_text(encoding="utf-8"))["config"])


def _median_round(run: RunFolder) -> float:
    return statistics.median(float(row["seconds"]) for row in run.read_metrics()[1:])


def _steady(run: PlainRun) -> float:
    return statistics.median(run.seconds[1:])


def _row(phase: str, flower: float | None, plain: float | None) -> dict[str, str]:
    return {
        "phase": phase,
        "through Flower, s": _shown(flower),
        "one process, s": _shown(plain),
        "ratio": _shown(flower / plain if flower and plain else None),
        "aim": _AIMS.get(phase, ""),
    }


def _shown(value: Any) -> str:
    return "-" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    main()
