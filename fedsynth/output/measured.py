"""What a report shows of an evaluation beside its numbers: groups, plain words, bars and pictures."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from fedsynth.evaluation import Evaluation
from fedsynth.output.evaluation_figures import Embedding, NearestImages

SHOWN_PER_CLASS = ("precision", "coverage")

GROUPS = {
    "Do they look like real images, and like all of them?": ("kernel-distance", "frechet-distance"),
    "Can a classifier learn from them?": ("accuracy-",),
    "Do they repeat training images?": ("nearest-neighbour-ratio", "copied-share", "released-membership"),
    "Do the models betray who was trained on?": ("epsilon-membership",),
    "What the silos measured at home": ("silo-",),
    "Is the generator as good as the images it was trained on?": ("generator-",),
}
"""Heading -> how the name of the first row below it begins."""

MEANINGS = {
    "kernel-distance": "between the clouds of real and synthetic features; KID if these are Inception's",
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
    "silo-frechet-distance": "to the real images of all silos, from sums that hide single images",
    "silo-accuracy": "of a classifier trained on the synthetic images",
    "silo-coverage": "share of the silos' held-out images whose neighbourhood holds a synthetic one",
}


def explained(results: Collection[str]) -> dict[str, Any]:
    """Return ``result_groups`` and ``meanings`` of :class:`fedsynth.output.ReportContent` for these measures."""
    groups: dict[str, str] = {}
    for heading, starts in GROUPS.items():
        first = next((measure for measure in results if measure.startswith(starts)), None)
        if first is not None:
            groups[first] = heading
    return {"result_groups": groups, "meanings": {name: MEANINGS[name] for name in results if name in MEANINGS}}


def measured_parts(evaluation: Evaluation) -> dict[str, Any]:
    """Return fields of :class:`fedsynth.output.ReportContent` by name: bars per class, and pictures if it has any."""
    parts: dict[str, Any] = {
        "per_class": _shown(evaluation, evaluation.per_class()),
        "per_class_reference": _shown(evaluation, evaluation.real_per_class()),
    }
    if evaluation.illustration is None:
        return parts
    triples, embedding = evaluation.illustration.triples, evaluation.illustration.embedding
    nearest = NearestImages(**vars(triples), space="pixels")
    return {**parts, "nearest": nearest, "embedding": Embedding(**vars(embedding))}


def _shown(evaluation: Evaluation, measures: Mapping[str, Mapping[str, float]]) -> dict[str, Mapping[str, float]]:
    accuracy = f"accuracy-{evaluation.main_classifier}"
    return {name: measures[name] for name in (accuracy, *SHOWN_PER_CLASS) if name in measures}
