"""Does the evaluation notice what it should: sets of digits with one known fault each, beside fresh real images.

A third set of real images is neither trained on nor tested on, and plays the part of a perfect generator. Every other
set spoils one thing: it repeats the training images, drops modes, holds no digits, or has wrong labels. All sets are as
large as the test fold, so that every measure uses all images. A kernel distance expects random draws: sets with
equal class shares are more alike than those, so that the control's lies below 0.
``python -m experiments.detectors`` prints the table, means over three splits, and whether each measure that should
notice a fault did.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

import numpy as np
import torch
from scipy.ndimage import uniform_filter

from experiments.benchmarks.common import markdown_table, origin
from fedsynth.data import LabelledImages, load_dataset
from fedsynth.data.apportion import apportion
from fedsynth.data.labelled_images import stratified_split
from fedsynth.evaluation import Evaluator, ImageSet, Settings
from fedsynth.seeding import derive_seed

SEEDS = (0, 1, 2)
SETTINGS = Settings("domain-classifier", classifiers=("cnn",), classifier_seeds=1)
GREY_LEVELS = 10
KEPT_CLASSES = 5

CONTROL = "fresh real images"
DISTANCES = {"kernel-distance", "frechet-distance"}
COPYING = {"nearest-neighbour-ratio", "copied-share", "authenticity", "released-membership-auc"}
EXPECTED: dict[str, set[str]] = {
    CONTROL: set(),
    "other fresh real images": set(),
    "the training set itself": COPYING,
    "training set, ±10 grey levels": COPYING,
    "5 of 10 classes": {*DISTANCES, "recall", "coverage", "accuracy-cnn"},
    "nearest to the class means": {"recall", "coverage"},
    "uniform noise": {*DISTANCES, "precision", "density", "coverage", "accuracy-cnn"},
    "blurred": DISTANCES,
    "labels shuffled": {"accuracy-cnn"},
}
"""Set -> the measures that have to notice its fault; stated before anything was measured."""

# In 14 splits two fresh sets differed by .07 at most in what lies in 0..1 or is 1 for fresh images.
SHARE = 0.1
WORSE = {
    # In the units of the features: about twice what two fresh sets differed by, 2.6 and 0.8 at most.
    "kernel-distance": 5.0,
    "frechet-distance": 1.6,
    "precision": -SHARE,
    "recall": -SHARE,
    "density": -SHARE,
    "coverage": -SHARE,
    "accuracy-cnn": -SHARE,
    "nearest-neighbour-ratio": -SHARE,
    "copied-share": SHARE,
    "authenticity": -SHARE,
    "released-membership-auc": SHARE,
}
"""Measure -> the smallest change against the control that flags a set; the sign is the direction for the worse."""


def flagged(row: Mapping[str, float], control: Mapping[str, float]) -> set[str]:
    """Return the measures that are worse than the control's by what :data:`WORSE` asks."""
    return {measure for measure, change in WORSE.items() if (row[measure] - control[measure]) / change >= 1}


def faulty_sets(trained_on: LabelledImages, unseen: LabelledImages, seed: int) -> dict[str, LabelledImages]:
    """Build all sets of :data:`EXPECTED`, each as large as the training set.

    Args:
        trained_on: what the generator saw.
        unseen: real images that it did not see: twice as many, and as many in any five classes.
        seed: decides every draw.
    """
    rng, size = np.random.default_rng(derive_seed(seed, "faulty-sets")), len(trained_on)
    fresh, others = take(unseen, size, rng)
    noise = rng.integers(0, 256, fresh.images.shape, np.uint8)
    grey = rng.integers(-GREY_LEVELS, GREY_LEVELS + 1, trained_on.images.shape)
    near_copies = (trained_on.images + grey).clip(0, 255).astype(np.uint8)
    kept = np.flatnonzero(np.isin(unseen.labels, rng.choice(len(unseen.classes), KEPT_CLASSES, replace=False)))
    sets = (
        fresh,
        take(others, size, rng)[0],
        trained_on,
        LabelledImages(near_copies, trained_on.labels, trained_on.classes),
        take(unseen.subset(kept), size, rng)[0],
        unseen.subset(_nearest_to_class_means(unseen, size)),
        LabelledImages(noise, fresh.labels, fresh.classes),
        LabelledImages(uniform_filter(fresh.images, (1, 3, 3, 1)), fresh.labels, fresh.classes),
        LabelledImages(fresh.images, rng.permutation(fresh.labels), fresh.classes),
    )
    return dict(zip(EXPECTED, sets, strict=True))


def take(images: LabelledImages, size: int, rng: np.random.Generator) -> tuple[LabelledImages, LabelledImages]:
    """Draw ``size`` of the images with their class shares; return them and the rest."""
    rest, taken = stratified_split(images.labels, size / len(images), rng)
    return images.subset(taken), images.subset(rest)


def _nearest_to_class_means(images: LabelledImages, size: int) -> list[int]:
    nearest: list[int] = []
    for label, count in enumerate(apportion(size, images.label_counts())):
        members = np.flatnonzero(images.labels == label)
        pixels = images.images[members].astype(np.float64)
        squared = np.square(pixels - pixels.mean(axis=0)).sum(axis=(1, 2, 3))
        nearest += members[np.argsort(squared)[:count]].tolist()
    return nearest


def measure(seed: int, settings: Settings) -> dict[str, dict[str, Any]]:
    """Split the digits, and return the columns of every set's evaluation."""
    train, test = load_dataset("digits")
    trained_on, unseen = take(train, len(test), np.random.default_rng(derive_seed(seed, "trained-on")))
    folds = (_image_set("training", trained_on), _image_set("test", test))
    evaluator = Evaluator(*folds, train.classes, seed, settings)
    sets = faulty_sets(trained_on, unseen, seed)
    return {name: evaluator.evaluate(each.images, each.labels).row() for name, each in sets.items()}


def _image_set(fold: str, images: LabelledImages) -> ImageSet:
    return ImageSet(f"real {fold} images", images.images, images.labels)


def main() -> None:
    """Measure all sets for every seed, and print what was flagged and whether it was to be."""
    torch.set_num_threads(1)
    repeats = [measure(seed, SETTINGS) for seed in SEEDS]
    means = {name: {m: fmean(rows[name][m] for rows in repeats) for m in WORSE} for name in EXPECTED}
    control = means[CONTROL]
    size = repeats[0][CONTROL]["n"]
    print(origin() + "\n")
    print(f"{size} images in each set, means over {len(SEEDS)} splits. Bold: worse than the control by at least")
    print(", ".join(f"{measure} {change:+g}" for measure, change in WORSE.items()) + ".\n")
    print(markdown_table([_cells(name, row, flagged(row, control)) for name, row in means.items()]) + "\n")
    print(markdown_table([_verdict(name, flagged(row, control)) for name, row in means.items()]))


def _cells(name: str, row: Mapping[str, float], bold: set[str]) -> dict[str, str]:
    return {"set": name, **{m: f"**{v:.3f}**" if m in bold else f"{v:.3f}" for m, v in row.items()}}


def _verdict(name: str, fired: set[str]) -> dict[str, str]:
    expected = EXPECTED[name]
    parts = {"fired as expected": expected & fired, "silent": expected - fired, "fired besides": fired - expected}
    return {"set": name, **{part: _names(measures) for part, measures in parts.items()}}


def _names(measures: set[str]) -> str:
    return ", ".join(measure for measure in WORSE if measure in measures) or "-"


if __name__ == "__main__":
    main()
