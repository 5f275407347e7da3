"""What was measured of one synthetic dataset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedsynth.evaluation.illustration import Illustration
from fedsynth.evaluation.membership import Membership
from fedsynth.evaluation.memorisation import Memorisation
from fedsynth.evaluation.networks.domain_classifier import ARCHITECTURE
from fedsynth.evaluation.utility import Scores
from fedsynth.units import show

Utility = Mapping[str, Scores]
PIXEL_SPACE = "pixels"


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """The measures of one synthetic dataset.

    Attributes:
        feature_space: what the features of ``fidelity`` are.
        fidelity: synthetic images against the test fold, as :func:`fedsynth.evaluation.fidelity.fidelity_measures`
            gives them: overall and by class.
        reference: the same of real training images. The features may be of a classifier of these very images, so fresh
            real images can come a little nearer (on digits they do).
        n_train: training images of each utility classifier, synthetic or real.
        utility: classifiers trained on synthetic images, by name.
        real_utility: the same classifiers trained on as many real images: the ceiling.
        joint_utility: the same trained on both sets together: what the synthetic images add to the real ones.
        classes: their names.
        notes: what a reader must know about these numbers.
        memorisation: how near the synthetic images come to training images, in pixels; None if it cannot be measured.
        membership: an attack on the synthetic images alone, in pixels; None if it cannot be measured.
        illustration: data of the report's pictures, if asked for.
    """

    feature_space: str
    fidelity: Mapping[str, Any]
    reference: Mapping[str, Any]
    n_train: int
    utility: Utility
    real_utility: Utility
    joint_utility: Utility
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    memorisation: Memorisation | None = None
    membership: Membership | None = None
    illustration: Illustration | None = None

    def __repr__(self) -> str:
        """Say what was measured in one line; all numbers are in :meth:`row`."""
        overall, main = self.fidelity["overall"], self.main_classifier
        numbers = {
            "n": self.n,
            "kernel-distance": overall.get("kernel-distance"),
            "coverage": overall.get("coverage"),
            f"accuracy-{main}": self.utility[main].row(main)[f"accuracy-{main}"],
        }
        said = ", ".join(f"{name} {show(value)}" for name, value in numbers.items() if value is not None)
        return f"<Evaluation in {self.feature_space}: {said}; all numbers: .row()>"

    @property
    def n(self) -> int:
        """Images on each side of a fidelity measure."""
        return int(self.fidelity["overall"]["n"])

    @property
    def main_classifier(self) -> str:
        """The classifier whose accuracy is shown where there is room for one."""
        return "cnn" if "cnn" in self.utility else [*self.utility][-1]

    def row(self) -> dict[str, Any]:
        """Return JSON-ready columns in kebab-case; all are flat but ``per-class`` and ``real-per-class``.

        Columns of real images measured instead of the synthetic ones begin with ``reference-`` (fidelity) or ``real-``
        (utility), those of classifiers trained on both with ``joint-``.
        """
        overall = dict(self.fidelity["overall"])
        reference = self.reference["overall"]
        row = {"n": overall.pop("n"), "k": overall.pop("k"), "feature-space": self.feature_space, **overall}
        row |= {f"reference-{name}": reference[name] for name in overall}
        row |= {"n-train": self.n_train, "classifier-version": ARCHITECTURE, **_columns(self.utility)}
        row |= _columns(self.real_utility, "real-") | _columns(self.joint_utility, "joint-")
        if self.memorisation:
            row |= {**self.memorisation.row(), "memorisation-space": PIXEL_SPACE}
        if self.membership:
            row |= self.membership.row("released-")
        row |= {"per-class": self.per_class(), "real-per-class": self.real_per_class()}
        return {**row, "notes": "; ".join(self.notes)}

    def per_class(self) -> dict[str, dict[str, float]]:
        """Return measure -> class name -> value; ``accuracy-<classifier>`` is the share of a class recognised."""
        return self._per_class(self.fidelity, self.utility)

    def real_per_class(self) -> dict[str, dict[str, float]]:
        """Return the same for real training images instead of the synthetic ones."""
        return self._per_class(self.reference, self.real_utility)

    def _per_class(self, fidelity: Mapping[str, Any], utility: Utility) -> dict[str, dict[str, float]]:
        measures: dict[str, dict[str, float]] = {}
        for name, row in fidelity["per-class"].items():
            for measure, value in row.items():
                if measure != "k":
                    measures.setdefault(measure, {})[name] = value
        for classifier, scores in utility.items():
            measures[f"accuracy-{classifier}"] = dict(zip(self.classes, scores.per_class_recall, strict=True))
            measures[f"f1-{classifier}"] = dict(zip(self.classes, scores.per_class_f1, strict=True))
        return measures


def _columns(utility: Utility, prefix: str = "") -> dict[str, float]:
    rows = [scores.row(classifier) for classifier, scores in utility.items()]
    return {f"{prefix}{name}": value for row in rows for name, value in row.items()}
