"""Cooperative inference on digits: which sampler, which weights, how many rounds; beside pooling and FedAvg.

All methods of a seed share the silos, their models, the labels and the first noise, so that rows can be paired. FedAvg
makes as many optimiser steps in every silo. ``python -m experiments.cooperation`` runs what is missing and prints the
table.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.repeated_runs import add_recipe, one_row, publish_methods

QUICK = {
    "train-steps": "900",
    "classifiers": "logistic-regression,cnn",
    "membership-inference": "false",
}
"""One measure of utility with a seed and one without: the means are over the runs' seeds."""
COLUMNS = {
    "rounds": "rounds",
    "frechet-distance": "Fréchet distance ↓",
    "precision": "precision ↑",
    "recall": "recall ↑",
    "coverage": "coverage ↑",
    "accuracy-logistic-regression": "LogReg ↑",
    "accuracy-cnn": "CNN ↑",
    "copied-share": "near-copies ↓",
}


def _dfd(sampler: str, weights: str, rounds: int) -> dict[str, str]:
    return {"strategy": "dfd", "sampler": sampler, "weights": weights, "dfd-rounds": str(rounds)}


def _drawn(strategy: str, sampler: str, levels: int) -> dict[str, str]:
    return {"strategy": strategy, "sampler": sampler, "sampling-steps": str(levels)}


METHODS = {
    "dfd, sde-dpmsolver++, posterior, 10": _dfd("sde-dpmsolver++", "posterior", 10),
    "dfd, ddpm, posterior, 25": _dfd("ddpm", "posterior", 25),
    "dfd, dpmsolver++, constant, 10": _dfd("dpmsolver++", "constant", 10),
    "pooled, sde-dpmsolver++, 10": _drawn("pooled", "sde-dpmsolver++", 10),
    "fedavg, sde-dpmsolver++, 10": _drawn("fedavg", "sde-dpmsolver++", 10),
}
MORE = {
    "dfd, sde-dpmsolver++, posterior, 25": _dfd("sde-dpmsolver++", "posterior", 25),
    "dfd, sde-dpmsolver++, constant, 10": _dfd("sde-dpmsolver++", "constant", 10),
    "dfd, dpmsolver++, energy, 10": _dfd("dpmsolver++", "energy", 10),
    "dfd, ddpm, constant, 25": _dfd("ddpm", "constant", 25),
    "dfd, ddim, constant, 25": _dfd("ddim", "constant", 25),
    "pooled, dpmsolver++, 10": _drawn("pooled", "dpmsolver++", 10),
    "pooled, ddpm, 25": _drawn("pooled", "ddpm", 25),
    "fedavg, ddpm, 25": _drawn("fedavg", "ddpm", 25),
}
"""Measured too with ``--methods``."""
PAPER = {"dfd, paper preset, 1000": {"strategy": "dfd", "dfd-preset": "paper"}}
"""Measured with the first seed alone: a thousand rounds take long."""


def main() -> None:
    """Run every method for every seed, unless its results are there, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=[*METHODS], choices=[*METHODS, *MORE, *PAPER])
    parser.add_argument("--output-dir", type=Path, default=Path("runs/cooperation"))
    add_recipe(parser)
    options = parser.parse_args()
    shared = {**QUICK, "recipe": options.recipe}
    methods = {name: {**shared, **(METHODS | MORE | PAPER)[name]} for name in options.methods}

    publish_methods("cooperation", methods, options.seeds, options.output_dir / options.recipe, one_row(COLUMNS), PAPER)


if __name__ == "__main__":
    main()
