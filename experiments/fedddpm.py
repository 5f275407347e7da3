"""FedDDPM and FedDDPM+ against FedAvg on MNIST: the same silos, the same optimiser steps in every silo.

FedAvg spends all 900 steps of a silo in its rounds; FedDDPM spends half of them on the models that the silos upload.
FedAvg with that half alone shows what the corrections add to equal rounds. So short a training is never as slow as the
default of FedDDPM+ demands, which is why its tolerance is raised.
``python -m experiments.fedddpm --data-root …`` runs what is missing and prints the table.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.repeated_runs import add_recipe, one_row, publish_methods

MNIST = {
    **{"dataset": "mnist", "image-size": "16", "samples-per-client": "300", "model": "small"},
    **{"block-out-channels": "16,32,32", "train-steps": "900", "sampler": "ddpm", "sampling-steps": "25"},
}
HALF = {"train-steps": "450", "local-steps": "450", "early-stop": "false"}
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
    add_recipe(parser)
    options = parser.parse_args()
    shared = {**MNIST, "recipe": options.recipe, "data-root": options.data_root}
    methods = {name: {**shared, **given} for name, given in METHODS.items()}

    publish_methods("fedddpm", methods, options.seeds, options.output_dir / options.recipe, one_row(COLUMNS))


if __name__ == "__main__":
    main()
