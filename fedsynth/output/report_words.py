"""The headings of a report's measures, and what each measure means."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

GROUPS = {
    "Do they look like real images, and like all of them?": ("kernel-distance", "frechet-distance"),
    "Can a classifier learn from them?": ("accuracy-",),
    "Do they repeat training images?": ("nearest-neighbour-ratio", "copied-share", "released-membership"),
    "Can an attacker tell from the models who was trained on?": ("epsilon-membership",),
    "What the silos measured on their own images": ("silo-",),
    "Is the generator as good as the images it was trained on?": ("generator-",),
}
"""Heading -> how the name of the first row below it begins."""

MEANINGS = {
    "kernel-distance": "between the clouds of real and synthetic features; KID if these are Inception's. An estimate:"
    " it scatters around 0 where both are alike, and a little below 0 means 0 within its noise",
    "frechet-distance": "the same for Gaussians fitted to both clouds; FID if the features are Inception's",
    "inception-score": "how sure and how varied a classifier's answers are",
    "precision": "share of synthetic images within reach of real ones",
    "recall": "share of real images within reach of synthetic ones",
    "density": "how many real neighbourhoods a synthetic image lies in",
    "coverage": "share of real images whose neighbourhood holds a synthetic one",
    "accuracy-logistic-regression": "right answers on real test images, trained on the synthetic ones",
    "accuracy-mlp": "the same for a small network",
    "accuracy-cnn": "the same for a small convolutional network",
    "accuracy-resnet": "the same for a ResNet-18",
    "nearest-neighbour-ratio": "distance to the nearest training image, by that of fresh real images",
    "copied-share": "share of synthetic images nearer to a training image than 95 % of fresh real images",
    "authenticity": "share farther from the nearest training image than that one from its next",
    "released-membership-auc": "does nearness to the released images tell training images from others? .5 is guessing",
    "released-membership-tpr-at-1-percent-fpr": "training images found with 1 % false accusations",
    "epsilon-membership-auc": "do a model's noise predictions tell training images from others? .5 is guessing",
    "epsilon-membership-tpr-at-1-percent-fpr": "training images found with 1 % false accusations",
    "generator-frechet-ratio": "its Fréchet distance by that of the released images",
    "generator-repeated-share": "share of its images nearer to a released one than 95 % of real test images",
    "generator-epsilon-membership-auc": "do its noise predictions tell training images from others? .5 is guessing",
    "silo-frechet-distance": "to the real images of all silos; runs compare at equal numbers of images",
    "silo-accuracy": "of a classifier trained on the synthetic images",
    "silo-recall": "share of the silos' held-out images in the neighbourhood of a synthetic one",
}

ROUNDS = {
    "effective-experts": "How many silos' models had a say in an image, in the mean (“effective experts”, the"
    " exponential of the entropy of their weights): as many as there are silos where all had the same weight, 1 where"
    " each image was left to one silo's model.",
}
"""Metric of the rounds -> what its curve says."""


def headings_and_meanings(results: Collection[str]) -> dict[str, Any]:
    """Return ``result_groups`` and ``meanings`` of :class:`fedsynth.output.ReportContent` for these measures."""
    groups: dict[str, str] = {}
    for heading, starts in GROUPS.items():
        first = next((measure for measure in results if measure.startswith(starts)), None)
        if first is not None:
            groups[first] = heading
    return {"result_groups": groups, "meanings": {name: MEANINGS[name] for name in results if name in MEANINGS}}
