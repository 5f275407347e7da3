"""Precision, recall, density and coverage: ``python -m experiments.benchmarks.evaluation [--quick] [--output FOLDER]``.

Ours against the ``prdc`` package of Naeem et al. 2020 on the same Gaussian features, 10,000 x 10,000 x 64, k = 5 (Linux
only). Time and peak resident set are those of one run in a fresh process that has imported everything and measured a
tiny set; best of three such processes. Exits with 1 when values differ or, without ``--quick``, a limit is passed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from experiments.benchmarks import resident
from experiments.benchmarks.common import in_fresh_process, machine_facts, publish
from fedsynth.evaluation import precision_recall_density_coverage

LEAST_SPEED_UP = 3.0
LARGEST_MEMORY_SHARE = 0.1
DIMENSION = 64
K = 5
REPEATS = 3


@dataclass
class Cost:
    """What one measurement took.

    Attributes:
        seconds: wall time.
        cpu_seconds: of all threads.
        peak: bytes above the resident set before.
        values: the measures.
    """

    seconds: float
    cpu_seconds: float
    peak: int
    values: dict[str, float]


def main() -> int:
    """Measure both, print one table, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2,000 samples per side: shows that it works")
    parser.add_argument(
        "--output", type=Path, help="folder for evaluation.md and evaluation.json (default: print only)"
    )
    options = parser.parse_args()
    facts = {**machine_facts(), "prdc": version("prdc")}
    size = 2_000 if options.quick else 10_000
    costs = {name: [in_fresh_process(cost, name, size) for _ in range(REPEATS)] for name in MEASURES}
    theirs, ours = (_best(costs[name]) for name in ("prdc", "fedsynth"))
    rows = [_row("prdc", theirs, theirs), _row("fedsynth", ours, theirs)]
    details = {"samples per side": size, **{name: [asdict(one) for one in runs] for name, runs in costs.items()}}
    publish("evaluation", facts, rows, details, options.output)
    return int(not _agree(ours, theirs) or (not options.quick and _too_much(ours, theirs)))


def cost(name: str, size: int) -> Cost:
    """Measure ``size`` x ``size`` samples; call it in a fresh process.

    Args:
        name: key of :data:`MEASURES`.
        size: samples per side.
    """
    rng = np.random.default_rng(0)
    real, synthetic = rng.normal(size=(size, DIMENSION)), 0.95 * rng.normal(size=(size, DIMENSION)) + 0.1
    measure = MEASURES[name]
    measure(real[:50], synthetic[:50])
    before, started, cpu_started = resident.reset_peak(), time.perf_counter(), time.process_time()
    values = measure(real, synthetic)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    return Cost(seconds, cpu_seconds, resident.peak() - before, values)


def _prdc(real: np.ndarray, synthetic: np.ndarray) -> dict[str, float]:
    from prdc import compute_prdc

    with contextlib.redirect_stdout(io.StringIO()):
        values = compute_prdc(real, synthetic, K)
    return {name: float(value) for name, value in values.items()}


def _ours(real: np.ndarray, synthetic: np.ndarray) -> dict[str, float]:
    return precision_recall_density_coverage(real, synthetic, K)


MEASURES: dict[str, Callable[[np.ndarray, np.ndarray], dict[str, float]]] = {"prdc": _prdc, "fedsynth": _ours}


def _best(costs: list[Cost]) -> Cost:
    """The least of each: other work on the machine can only add."""
    seconds, cpu_seconds = min(one.seconds for one in costs), min(one.cpu_seconds for one in costs)
    return Cost(seconds, cpu_seconds, min(one.peak for one in costs), costs[0].values)


def _agree(ours: Cost, theirs: Cost) -> bool:
    return all(abs(ours.values[name] - value) < 1e-9 for name, value in theirs.values.items())


def _too_much(ours: Cost, theirs: Cost) -> bool:
    return LEAST_SPEED_UP * ours.seconds > theirs.seconds or ours.peak > LARGEST_MEMORY_SHARE * theirs.peak


def _row(name: str, measured: Cost, theirs: Cost) -> dict[str, str]:
    return {
        "measure": name,
        "seconds": f"{measured.seconds:.2f}",
        "times faster": f"{theirs.seconds / measured.seconds:.1f}",
        "CPU seconds": f"{measured.cpu_seconds:.2f}",
        "peak MB": f"{measured.peak / 1e6:.0f}",
        "share of memory": f"{measured.peak / theirs.peak:.3f}",
        **{key: f"{value:.4f}" for key, value in measured.values.items()},
    }


if __name__ == "__main__":
    sys.exit(main())
