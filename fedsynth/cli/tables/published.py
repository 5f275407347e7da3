"""Rows of published tables, to stand beside measured ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_KEYS = (
    *("frechet-distance", "precision", "recall", "density", "coverage"),
    *("accuracy-logistic-regression", "accuracy-mlp", "accuracy-cnn"),
)
_HAHN_LEE = "Hahn & Lee 2025"


@dataclass(frozen=True)
class PublishedRow:
    """A row of a paper.

    Attributes:
        name: The paper's name of the method, and the paper.
        values: Column of ``results.json`` -> number; accuracies as shares.
    """

    name: str
    values: Mapping[str, float]


SOURCE = (
    f"rows marked [{_HAHN_LEE}] are copied from the paper (NeurIPS 2025, Tables 1 and 2), not measured here: single"
    " runs without error bars; ten silos of about 300 images, 32x32; FID in Inception features, the number N of images"
    " it was measured with is not known to us"
)


def _row(method: str, numbers: str) -> PublishedRow:
    values = [float(word) for word in numbers.split()]
    shares = [value / 100 for value in values[5:]]
    return PublishedRow(f"{method} [{_HAHN_LEE}]", dict(zip(_KEYS, [*values[:5], *shares], strict=True)))


PUBLISHED: dict[str, tuple[PublishedRow, ...]] = {
    "mnist": (
        _row("FedDiffuse", "49.57 .184 .761 .115 .343 78.2 77.5 78.8"),
        _row("DfD", "37.74 .622 .344 .182 .394 78.5 78.1 78.9"),
    ),
    "cifar10": (
        _row("FedDiffuse", "78.38 .414 .212 .373 .296 29.2 31.3 33.0"),
        _row("DfD", "59.98 .515 .249 .352 .359 28.3 32.4 34.1"),
    ),
    "celeba": (
        _row("FedDiffuse", "33.33 .299 .518 .232 .279 55.2 58.1 58.2"),
        _row("DfD", "29.18 .373 .414 .223 .237 57.3 56.5 59.3"),
    ),
}
"""Dataset -> rows of Hahn & Lee, "Cooperative inference" (DfD), NeurIPS 2025."""
