"""The columns of a comparison of runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fedsynth.progress import duration
from fedsynth.units import human_bytes, show

_ARROWS = {"higher": " ↑", "lower": " ↓"}
_IN_SPACE = ("feature-space", "n")


@dataclass(frozen=True)
class Measure:
    """One column of the comparison.

    Attributes:
        key: Column of ``results.json``.
        better: ``higher``, ``lower``, or the ideal value, such as ``near 1``; empty: none of these.
        bases: Columns of ``results.json`` in which runs must agree, or their values may not be compared.
        real: Column with what real images reach, if there is one.
        unit: Turns a number into text.
    """

    key: str
    better: str = ""
    bases: tuple[str, ...] = ()
    real: str = ""
    unit: Callable[[float], str] = show

    @property
    def head(self) -> str:
        """Head of the column."""
        return self.key + _ARROWS.get(self.better, f" ({self.better})" if self.better else "")


FIDELITY = [
    Measure("frechet-distance", "lower", _IN_SPACE, "reference-frechet-distance"),
    Measure("kernel-distance", "lower", _IN_SPACE, "reference-kernel-distance"),
    Measure("inception-score", "higher", _IN_SPACE, "reference-inception-score"),
    Measure("precision", "higher", _IN_SPACE, "reference-precision"),
    Measure("recall", "higher", _IN_SPACE, "reference-recall"),
    Measure("density", "near 1", _IN_SPACE, "reference-density"),
    Measure("coverage", "higher", _IN_SPACE, "reference-coverage"),
]
MEMORISATION = [
    Measure("copied-share", "lower", ("memorisation-space",)),
    Measure("nearest-neighbour-ratio", "near 1", ("memorisation-space",)),
    Measure("authenticity", "higher", ("memorisation-space",), "test-authenticity"),
    Measure("released-membership-auc", "near .5", ("memorisation-space",)),
    Measure("epsilon-membership-auc", "lower"),
]
PRIVACY = [
    Measure("privacy-epsilon"),
    Measure("copied-share", bases=("memorisation-space",)),
    Measure("epsilon-membership-auc"),
    Measure("epsilon-membership-auc-highest"),
    Measure("released-membership-auc", bases=("memorisation-space",)),
]
FEW_LABELS = [
    Measure("classifier-accuracy-synthetic", "higher"),
    Measure("classifier-accuracy-labelled", "higher"),
    Measure("classifier-accuracy-pseudo", "higher"),
    Measure("classifier-accuracy-fixmatch", "higher"),
    Measure("classifier-accuracy-all", "higher"),
    Measure("pseudo-label-share"),
    Measure("pseudo-label-precision", "higher"),
]
COST = [
    Measure("rounds"),
    Measure("bytes-down", "lower", unit=human_bytes),
    Measure("bytes-up", "lower", unit=human_bytes),
    Measure("client-seconds", unit=duration),
    Measure("wall-seconds", unit=duration),
]
