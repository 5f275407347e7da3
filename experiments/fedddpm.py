"""FedDDPM and FedDDPM+ against FedAvg on MNIST: the same silos, the same optimiser steps in every silo.

FedAvg spends all 900 steps of a silo in its rounds; FedDDPM spends half of them on the models that the silos upload.
FedAvg with that half alone shows what the corrections add to equal rounds. So short a training is never as slow as the
default of FedDDPM+ demands, which is why its tolerance is raised.
``python -m experiments.fedddpm --data-root …`` runs what is missing and prints the table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from experiments.benchmarks.common import machine_facts, publish

SETTING = Path(__file__).with_name("mnist-dirichlet.toml")
HALF = {"train-steps": "450", "local-steps": "450"}
METHODS = {
    "fedavg": {"strategy": "fedavg"},
    "fedddpm": {"strategy": "fedddpm", **HALF},
    "fedddpm-plus": {"strategy": "fedddpm-plus", **HALF, "slow-tolerance": "0.15"},
    "fedavg-450": {"strategy": "fedavg", "train-steps": "450"},
}
COLUMNS = {
    "frechet-distance": "Fréchet distance ↓",
    "recall": "recall ↑",
    "coverage": "coverage ↑",
    "accuracy-logistic-regression": "LogReg ↑",
    "accuracy-mlp": "MLP ↑",
    "accuracy-cnn": "CNN ↑",
    "server-steps": "server steps",
}


def main() -> None:
    """Run every method for every seed, unless its results are there, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", required=True, help="folder that holds MNIST in torchvision's layout")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output-dir", type=Path, default=Path("runs/fedddpm"))
    options = parser.parse_args()
    rows, details = [], {}
    for name, settings in METHODS.items():
        results = [_results(name, settings, seed, options) for seed in options.seeds]
        details[name] = results
        rows.append({"method": name, **{head: _cell([r[key] for r in results]) for key, head in COLUMNS.items()}})
    publish("fedddpm", machine_facts() | {"seeds": options.seeds}, rows, details, options.output_dir)


def _results(name: str, settings: dict[str, str], seed: int, options: argparse.Namespace) -> dict[str, Any]:
    folder = options.output_dir.absolute() / f"{name}-{seed}"
    if not (folder / "results.json").is_file():
        started = (folder / "config.json").is_file()
        words = ["--resume", str(folder)] if started else _fresh(settings, seed, folder, options.data_root)
        subprocess.run([sys.executable, "-m", "fedsynth.cli", "run", *words], check=True)
    return dict(json.loads((folder / "results.json").read_text()))


def _fresh(settings: dict[str, str], seed: int, folder: Path, data_root: str) -> list[str]:
    place = {"output-dir": str(folder.parent), "run-name": folder.name, "data-root": data_root, "seed": str(seed)}
    return [str(SETTING), *(word for key, value in {**settings, **place}.items() for word in (f"--{key}", value))]


def _cell(values: list[float]) -> str:
    if all(float(value).is_integer() for value in values):
        return f"{fmean(values):.0f}"
    digits = 1 if fmean(values) > 2 else 3
    return f"{fmean(values):.{digits}f} ({min(values):.{digits}f} … {max(values):.{digits}f})"


if __name__ == "__main__":
    main()
