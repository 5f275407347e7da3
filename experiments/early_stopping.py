"""What early stopping saves and costs: one silo of few or more digits, trained long, with and without it.

``python -m experiments.early_stopping`` runs what is missing and prints the table.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

from experiments.repeated_runs import add_recipe, one_row, publish_methods

ALONE = {
    **{"strategy": "pooled", "num-clients": "1", "partition": "iid", "train-steps": "2000"},
    **{"sampler": "dpmsolver++", "sampling-steps": "12"},
}
IMAGES = (40, 144)
COLUMNS = {
    "copied-share": "near-copies ↓",
    "epsilon-membership-auc": "membership AUC ↓",
    "frechet-distance": "Fréchet distance ↓",
    "recall": "recall ↑",
    "coverage": "coverage ↑",
    "accuracy-logistic-regression": "LogReg ↑",
    "accuracy-cnn": "CNN ↑",
    "client-seconds": "client seconds",
}


def main() -> None:
    """Run every silo with and without early stopping, unless the results are there, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output-dir", type=Path, default=Path("runs/early-stopping"))
    add_recipe(parser)
    options = parser.parse_args()
    methods = {
        f"{images} images, early-stop={early_stop}": {
            **ALONE,
            "recipe": options.recipe,
            "samples-per-client": str(images),
            "early-stop": early_stop,
        }
        for images, early_stop in product(IMAGES, ("false", "true"))
    }

    publish_methods("early-stopping", methods, options.seeds, options.output_dir / options.recipe, one_row(COLUMNS))


if __name__ == "__main__":
    main()
