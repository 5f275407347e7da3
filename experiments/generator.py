"""How good is a model that the server trains on the released set? Beside that set, and beside FedAvg, on digits.

FedAvg makes as many optimiser steps in every silo, and leaves a model that can draw more images too.
``python -m experiments.generator`` runs what is missing and prints the table.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.cooperation import QUICK
from experiments.repeated_runs import add_recipe, mean_and_range, publish_methods, table_row

METHODS = {
    "dfd-1000": {"strategy": "dfd", "generator-steps": "2000"},
    "dfd-4000": {"strategy": "dfd", "generator-steps": "2000", "num-samples": "4000"},
    "fedavg": {"strategy": "fedavg"},
}
COLUMNS = {
    "frechet-distance": "Fréchet distance ↓",
    "precision": "precision ↑",
    "recall": "recall ↑",
    "coverage": "coverage ↑",
    "accuracy-cnn": "CNN ↑",
    "copied-share": "near-copies ↓",
}
FURTHER = {
    "generator-frechet-ratio": "ratio of distances",
    "generator-repeated-share": "near-copies of released images",
}
"""Measures that only a generator has."""


def main() -> None:
    """Run every method for every seed, unless its results are there, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=[*METHODS], choices=[*METHODS])
    parser.add_argument("--output-dir", type=Path, default=Path("runs/generator"))
    add_recipe(parser)
    options = parser.parse_args()
    methods = {name: {**QUICK, "recipe": options.recipe, **METHODS[name]} for name in options.methods}
    publish_methods("generator", methods, options.seeds, options.output_dir / options.recipe, rows_of)


def rows_of(name: str, results: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, str]]:
    """Yield the row of a method's released sets, and that of the sets drawn from its generators if it has any."""
    yield table_row(name, results, COLUMNS) | dict.fromkeys(FURTHER.values(), "-")
    if "generator-steps" in results[0]:
        drawn = [{key: row[f"generator-{key}"] for key in COLUMNS} for row in results]
        further = {head: mean_and_range([row[key] for row in results]) for key, head in FURTHER.items()}
        yield table_row(f"{name}, generator", drawn, COLUMNS) | further


if __name__ == "__main__":
    main()
