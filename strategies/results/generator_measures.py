"""What was measured of a generator: a fresh set drawn from it, beside the released set that it was trained on."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from fedsynth.diffusion import codec_of
from fedsynth.evaluation import Evaluation, Evaluator, measure_rows
from fedsynth.evaluation.evaluation import PIXEL_SPACE
from fedsynth.evaluation.measure_table import SYNTHETIC
from fedsynth.evaluation.membership import Membership
from fedsynth.evaluation.memorisation import Forms, Memorisation, memorisation_of_images
from strategies.base import Outcome, Task
from strategies.results.generator import Generator
from strategies.results.membership_inference import attack_generator

logger = logging.getLogger("fedsynth")

COLUMN = "generator"
RATIO, REPEATED = "generator-frechet-ratio", "generator-repeated-share"


@dataclass(frozen=True, eq=False)
class GeneratorMeasures:
    """Measures of as many fresh images as the released set has, with its labels.

    Attributes:
        evaluation: of the fresh set, against the same real images as the released one's.
        frechet_ratio: its Fréchet distance by that of the released set.
        repeated: how near fresh images come to released ones; unseen real images set what is near.
        attack: membership inference by the generator's noise predictions.
    """

    evaluation: Evaluation
    frechet_ratio: float
    repeated: Memorisation
    attack: Membership | None = None

    def row(self) -> dict[str, Any]:
        """Return the columns of ``results.json``; those that the released set has too begin with ``generator-``."""
        row: dict[str, Any] = {f"generator-{measure}": value for measure, value in self._values().items()}
        row |= {RATIO: self.frechet_ratio, REPEATED: self.repeated.copied_share}
        return row | (self.attack.row("generator-epsilon-") if self.attack else {})

    def beside(self, rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Add a column to the released set's measure -> columns, and rows for what only a generator has."""
        wider = dict(rows)
        for measure, value in self._values().items():
            wider[measure] = {SYNTHETIC: rows[measure][SYNTHETIC], COLUMN: value, **rows[measure]}
        fidelity = {"N": self.evaluation.n, "in": self.evaluation.feature_space}
        copies = {"N": self.repeated.synthetic_count, "in": PIXEL_SPACE}
        wider[RATIO] = {COLUMN: self.frechet_ratio, "better": "near 1", **fidelity}
        wider[REPEATED] = {COLUMN: self.repeated.copied_share, "real": 0.05, "better": "lower", **copies}
        if self.attack:
            auc = self.attack.row("generator-epsilon-")["generator-epsilon-membership-auc"]
            beside = {"real": 0.5, "better": "near .5", "N": self.attack.n_members, "in": "noise predictions"}
            wider["generator-epsilon-membership-auc"] = {COLUMN: auc, **beside}
        return wider

    def _values(self) -> dict[str, float]:
        return {measure: row[SYNTHETIC] for measure, row in measure_rows([self.evaluation]).items()}


def measure_generator(
    task: Task, outcome: Outcome, generator: Generator, evaluator: Evaluator, released: Evaluation
) -> GeneratorMeasures:
    """Draw a set of the released set's labels from other noise, and measure both it and the generator.

    Raises:
        UserError: the images cannot be measured.
    """
    folds, federation = task.real_folds, task.federation
    assert folds is not None  # or there would be no evaluator
    logger.info("measuring a fresh set of the generator")
    images = generator.draw(task, outcome.labels)
    fresh = evaluator.evaluate(images, outcome.labels)
    distances = (set_.fidelity["overall"]["frechet-distance"] for set_ in (fresh, released))
    # It was trained on the released images as they are.
    forms = Forms(reconstruct=codec_of(task.config, task.spec).reconstruct)
    repeated = memorisation_of_images(images, outcome.images, folds[1].images, forms)
    asked = task.config.evaluation.membership_inference
    attack = attack_generator(task, federation, generator.unet) if asked and federation else None
    return GeneratorMeasures(fresh, next(distances) / next(distances), repeated, attack)
