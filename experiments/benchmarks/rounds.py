"""What a round costs through Flower: ``python -m experiments.benchmarks.rounds [--quick] [--output FOLDER]``.

(a) A cooperative run in simulation against the same ε evaluations and composition in one plain process, in steady
    state: the first round, in which workers load the models, is left out.
(b) Federated averaging in simulation against as many training steps in one plain process, first round left out.
(c) Our exchange loop against Flower's ``send_and_receive`` for tiny messages to ten silos, in turns on one grid.

Figures are medians, since other work on the machine makes some rounds many times slower. Ratios below 1 mean that
the simulation is faster: its workers share the cores by silos instead of by threads.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.benchmarks.common import in_fresh_process, machine_facts, publish, spread
from experiments.benchmarks.flower_runs import echo_seconds, synthesise
from experiments.benchmarks.plain import PlainRun, cooperative_inference, training
from fedsynth.config import Scalar
from fedsynth.data import read_image_folder
from fedsynth.output import RunFolder

Details = dict[str, Any]

THREADS = {"plain, default threads": None, "plain, one thread": 1}
"""Plain processes by name: torch threads, None for torch's default. The first is what a user would run."""


def main() -> None:
    """Measure everything and print it as one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, once: shows that it works, no more")
    parser.add_argument("--num-samples", type=int, default=500, help="synthetic images in (a) (default: 500)")
    parser.add_argument("--output", type=Path, help="folder for rounds.md and rounds.json (default: only print)")
    options = parser.parse_args()
    facts, repeats = machine_facts(), 1 if options.quick else 2
    with tempfile.TemporaryDirectory(prefix="fedsynth-rounds-") as folder:
        scratch = Path(folder)
        cooperative = _cooperative(scratch, repeats, 10 if options.quick else 25, options.num_samples)
        averaging = _averaging(scratch, repeats, 3 if options.quick else 4)
        exchange = echo_seconds(scratch, 1 if options.quick else 4)
    rows = [
        _row(f"(a) cooperative round, N = {options.num_samples}", cooperative, "<= 1.15"),
        _row("(b) federated averaging round", averaging, "<= 1.0"),
        *(_exchange_row(rhythm, seconds) for rhythm, seconds in exchange.items()),
    ]
    publish("rounds", facts, rows, {"a": cooperative, "b": averaging, "c": exchange}, options.output)


def _cooperative(scratch: Path, repeats: int, rounds: int, num_samples: int) -> Details:
    """Repeat (a), simulation and plain processes in turn; the first run trains the models, the others find them."""
    settings: dict[str, Scalar] = {
        **_common_settings("dfd"),
        "num-samples": num_samples,
        "dfd-rounds": rounds,
        "screening": False,
        "train-steps": 20,
    }
    details: Details = {"flower": [], **{name: [] for name in THREADS}, "identical images": []}
    for repeat in range(repeats):
        run = synthesise(scratch, f"dfd-{repeat}", settings)
        details["flower"].append(_round_seconds(run))
        resolved = json.loads(run.config.read_text(encoding="utf-8"))["config"]
        for name, threads in THREADS.items():
            plain = in_fresh_process(cooperative_inference, resolved, threads)
            details[name].append(plain.seconds)
            details["identical images"].append(_identical_images(run, plain))
    return details


def _averaging(scratch: Path, repeats: int, rounds: int) -> Details:
    """Repeat (b), simulation and plain processes in turn, with the default number of steps per silo and round."""
    settings: dict[str, Scalar] = {
        **_common_settings("fedavg"),
        "num-samples": 10,
        "num-rounds": rounds,
        "train-steps": 45 * rounds,
    }
    details: Details = {"flower": [], **{name: [] for name in THREADS}}
    for repeat in range(repeats):
        run = synthesise(scratch, f"fedavg-{repeat}", settings)
        details["flower"].append(_round_seconds(run))
        resolved = json.loads(run.config.read_text(encoding="utf-8"))["config"]
        for name, threads in THREADS.items():
            details[name].append(in_fresh_process(training, resolved, rounds, threads).seconds)
    return details


def _common_settings(strategy: str) -> dict[str, Scalar]:
    return {"strategy": strategy, "dataset": "digits", "num-clients": 10, "device": "cpu", "evaluate": False}


def _round_seconds(run: RunFolder) -> list[float]:
    return [float(row["seconds"]) for row in run.read_metrics()]


def _identical_images(run: RunFolder, plain: PlainRun) -> int:
    """Count the labelled images that both made: shows that both did the same work, rounding apart."""
    assert plain.images is not None
    assert plain.labels is not None
    published = read_image_folder(run.synthetic)
    both = _count(published.images, published.labels) & _count(plain.images, plain.labels)
    return both.total()


def _count(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> Counter[tuple[int, bytes]]:
    return Counter((int(label), image.tobytes()) for image, label in zip(images, labels, strict=True))


def _steady(runs: list[list[float]]) -> list[float]:
    """Rounds of all repeats without the first of each."""
    return [seconds for run in runs for seconds in run[1:]]


def _row(name: str, details: Details, aim: str) -> dict[str, str]:
    """Lay out ratios of median seconds, with those of each repeat to show the noise."""
    row = {"measure": name}
    flower = statistics.median(_steady(details["flower"]))
    for plain in THREADS:
        ratio = flower / statistics.median(_steady(details[plain]))
        row[f"ratio to {plain}"] = f"{ratio:.2f} ({_ratios(details['flower'], details[plain])})"
    seconds = {kind: spread(_steady(details[kind])) for kind in ("flower", *THREADS)}
    return row | {"aim": aim, "seconds per round, median (min-max)": "; ".join(map(_said, seconds, seconds.values()))}


def _exchange_row(rhythm: str, seconds: dict[str, list[float]]) -> dict[str, str]:
    ratio = statistics.median(seconds["stock"]) / statistics.median(seconds["exchange"])
    row = {"measure": f"(c) send_and_receive, {rhythm}"}
    row |= dict.fromkeys([f"ratio to {plain}" for plain in THREADS], f"stock / ours {ratio:.2f}")
    text = "; ".join(_said(loop, spread(values)) for loop, values in seconds.items())
    return row | {"aim": ">= 1.5", "seconds per round, median (min-max)": text}


def _ratios(flower: list[list[float]], plain: list[list[float]]) -> str:
    pairs = zip(flower, plain, strict=True)
    return " ".join(f"{statistics.median(f[1:]) / statistics.median(p[1:]):.2f}" for f, p in pairs)


def _said(kind: str, seconds: dict[str, float]) -> str:
    return f"{kind} {seconds['median']:.3f} ({seconds['min']:.3f}-{seconds['max']:.3f})"


if __name__ == "__main__":
    main()
