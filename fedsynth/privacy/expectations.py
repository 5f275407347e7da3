"""What quality private training reached where we measured it, and what follows for others.

Accuracy on real images of a CNN trained on synthetic ones. The program's own figures stand in docs/results/private.md:
ten silos of 144 digits (8×8 pixels), all classes at each, means of three seeds; and MNIST at 16×16, two digits a silo,
one seed.

Prototype figures: MNIST at 8×8 pixels, a network of 41,000 weights that predicts v, one seed, rates chosen on the test
images; 1,000 synthetic ones. A CNN trained on real images has .90, guessing .10. Differences below .05 mean nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

REAL_ACCURACY = 0.90
ONE_SILO: Mapping[tuple[int, float], float] = {
    (300, 10.0): 0.24,
    (300, 3.0): 0.17,
    (300, 1.0): 0.15,
    (1_500, 10.0): 0.62,
    (1_500, 3.0): 0.43,
    (1_500, 1.0): 0.16,
    (6_000, 10.0): 0.66,
    (6_000, 3.0): 0.60,
    (6_000, 1.0): 0.47,
}
"""(images, ε) -> accuracy from the model of one silo."""
WITHOUT_PRIVACY: Mapping[int, float] = {300: 0.74, 1_500: 0.71, 6_000: 0.76}
"""Images -> accuracy from the model of one silo that trains without noise."""
SUM = "dp-sum (with the noise that a trusted party would add)"
TEN_SILOS: Mapping[tuple[int, float], Mapping[str, float]] = {
    (300, 10.0): {"largest silo alone": 0.28, "pooled": 0.25, "dfd": 0.29, "fedavg": 0.38, SUM: 0.68},
    (1_500, 10.0): {"largest silo alone": 0.55, "pooled": 0.62, "dfd": 0.62, "fedavg": 0.67, SUM: 0.74},
    (1_500, 1.0): {"largest silo alone": 0.21, "pooled": 0.17, "dfd": 0.21, "fedavg": 0.27, SUM: 0.64},
}
"""(images of each of ten silos, ε of each) -> method -> accuracy; images spread evenly."""
DIGITS: Mapping[float, Mapping[str, float]] = {
    10.0: {"dp-sum": 0.80, "dfd": 0.63, "fedavg": 0.54, "pooled": 0.52, "local, mean of the ten": 0.36},
    3.0: {"dp-sum": 0.64, "dfd": 0.41, "pooled": 0.38, "fedavg": 0.26},
    1.0: {"dp-sum": 0.44, "dfd": 0.22, "fedavg": 0.20, "pooled": 0.19},
}
"""ε -> strategy -> accuracy, of ten silos of 144 digits; real images: .95."""
TWO_CLASSES: Mapping[str, float] = {"dfd": 0.69, "dp-sum": 0.56}
"""Strategy -> accuracy at ε = 10 with 240 steps, of ten silos of 300 images of two digits each."""
PUBLIC_START: Mapping[tuple[int, float], float] = {(300, 10.0): 0.53, (1_500, 1.0): 0.50}
"""(images, ε) -> accuracy from the model of one silo that starts from one of a close public data set."""
CLASSES = ((0.3, "hardly better than guessing"), (0.5, "poor"), (0.6, "fair"), (1.1, "good"))
"""Accuracy below which -> the class in words."""
LEAST_ALONE = 500
"""Images below which a silo that trains alone, from nothing, at ε <= 10 gets nothing of use."""

T = TypeVar("T")


def nearest(measured: Mapping[tuple[int, float], T], records: int, epsilon: float) -> tuple[tuple[int, float], T]:
    """Return the nearest measured point (images, ε) that promises no more, and what was found there.

    The noise of a mean gradient is proportional to 1 / (images · ε) where σ is large, so a point promises no more if it
    has no larger product. Where all have, it is the one with the smallest: less is to be expected.
    """

    def distance(point: tuple[int, float]) -> float:
        return math.hypot(math.log(point[0] / records), math.log(point[1] / epsilon))

    humble = [point for point in measured if point[0] * point[1] <= records * epsilon]
    best = min(humble, key=distance) if humble else min(measured, key=lambda point: point[0] * point[1])
    return best, measured[best]


def quality_class(accuracy: float) -> str:
    """Return the class of an accuracy in words."""
    return next(words for bound, words in CLASSES if accuracy < bound)
