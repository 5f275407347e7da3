"""Measurements at the end of a run: against the real images of a simulation, at the silos, and against the models."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsynth.diffusion import codec_of, exact_variants
from fedsynth.errors import RunError, UserError
from fedsynth.evaluation import Evaluation, Evaluator, ImageSet, Settings, all_notes, mean_columns, measure_rows
from fedsynth.evaluation.memorisation import Forms
from fedsynth.files import nonfinite_as_null
from strategies.base import Outcome, Task
from strategies.conversation.exchange import Exchange
from strategies.results.federated_evaluation import SiloEvaluation, evaluate_at_silos
from strategies.results.generator import Generator
from strategies.results.generator_measures import GeneratorMeasures, measure_generator
from strategies.results.membership_inference import ModelAttack, attack_models

logger = logging.getLogger("fedsynth")

LabelledSet = tuple[NDArray[np.uint8], NDArray[np.int64]]


@dataclass(frozen=True, eq=False)
class Measurements:
    """What was measured of a run's datasets and models.

    Attributes:
        evaluations: by folder of the dataset; "" when there is one dataset.
        at_silos: what the silos say.
        attack: membership inference against the models.
        generator: what the generator draws, if there is one.
        notes: what the strategy says of the dataset, and what could not be measured.
    """

    evaluations: Mapping[str, Evaluation] = field(default_factory=dict)
    at_silos: SiloEvaluation | None = None
    attack: ModelAttack | None = None
    generator: GeneratorMeasures | None = None
    notes: tuple[str, ...] = ()

    def row(self) -> dict[str, Any]:
        """Return the columns of ``results.json``; ``silos`` holds those of each dataset when there are several."""
        row: dict[str, Any] = mean_columns(list(self.evaluations.values()))
        if len(self.evaluations) > 1:
            row["silos"] = {name: evaluation.row() for name, evaluation in self.evaluations.items()}
        row |= self.attack.row() if self.attack else {}
        row |= self.at_silos.row() if self.at_silos else {}
        row |= self.generator.row() if self.generator else {}
        notes = filter(None, [row.pop("notes", ""), *self.notes])
        row |= {"notes": "; ".join(notes)} if self.evaluations or self.notes else {}
        # A measure that is not defined for this set is missing, which the file says as null.
        return dict(nonfinite_as_null(row))

    def table(self) -> dict[str, dict[str, Any]]:
        """Lay out as measure -> columns."""
        rows = measure_rows(list(self.evaluations.values())) if self.evaluations else {}
        rows |= self.attack.table() if self.attack else {}
        rows |= self.at_silos.table() if self.at_silos else {}
        return self.generator.beside(rows) if self.generator else rows

    def limits(self) -> tuple[str, ...]:
        """Return what a reader must know about the numbers."""
        at_silos = self.at_silos.notes if self.at_silos else ()
        return (*self.notes, *all_notes(list(self.evaluations.values())), *at_silos)


def measure_run(
    exchange: Exchange,
    task: Task,
    outcome: Outcome,
    sets: Mapping[str, LabelledSet],
    generator: Generator | None = None,
) -> Measurements:
    """Measure everything that the configuration asks for; what fails is a note, the rest is kept."""
    asked, notes = task.config.evaluation, [*outcome.notes, *_unmeasured(task)]
    evaluations: dict[str, Evaluation] = {}
    attack = of_generator = None
    try:
        evaluator = _evaluator(task) if asked.evaluate else None
        evaluations = _evaluate(task, evaluator, sets) if evaluator else {}
        attack = attack_models(exchange, task, outcome) if asked.evaluate and asked.membership_inference else None
        if evaluator and generator:
            of_generator = measure_generator(task, outcome, generator, evaluator, evaluations[""])
            if task.federation is None:
                of_generator = replace(of_generator, evaluation=_without_copies(of_generator.evaluation))
    except Exception as error:
        # The dataset is finished: whatever goes wrong in measuring it, what it cost and where it lies is still told.
        logger.warning("measurement given up: %s", error, exc_info=not isinstance(error, (UserError, RunError)))
        notes.append(f"measurement given up: {error}")
    at_silos = evaluate_at_silos(exchange, task, outcome) if asked.evaluate_silos else None
    return Measurements(evaluations, at_silos, attack, of_generator, tuple(notes))


def _evaluator(task: Task) -> Evaluator | None:
    """Gather the real images; None where the server does not have them."""
    folds = task.real_folds
    if folds is None:
        return None
    train, test = folds
    return Evaluator(
        ImageSet("real training images", train.images, train.labels),
        ImageSet("real test images", test.images, test.labels),
        task.spec.classes,
        task.config.run.seed,
        Settings.of(task.config),
        trained_on=_seen_by_silos(task),
        progress=logger.info,
        forms=Forms(exact_variants(task.config.training.augmentations()), codec_of(task.config, task.spec).reconstruct),
    )


def _evaluate(task: Task, evaluator: Evaluator, sets: Mapping[str, LabelledSet]) -> dict[str, Evaluation]:
    done = {}
    for name, synthetic in sets.items():
        if name:
            logger.info("measuring the set of %s", name)
        done[name] = evaluator.evaluate(*synthetic, illustrated=len(sets) == 1)
    return done if task.federation else {name: _without_copies(evaluation) for name, evaluation in done.items()}


def _seen_by_silos(task: Task) -> ImageSet | None:
    if task.federation is None:
        return None
    union = task.federation.union(task.config)
    return ImageSet("images that silos trained on", union.images, union.labels)


def _without_copies(evaluation: Evaluation) -> Evaluation:
    """Drop what says whether images were learnt by heart: nobody trained on the operator's own real images."""
    return replace(evaluation, memorisation=None, membership=None, illustration=None)


def _unmeasured(task: Task) -> list[str]:
    """What could not be measured because real images stay with real silos."""
    if task.federation is not None or not task.config.evaluation.evaluate:
        return []
    unseen = "copies of training images and membership inference: the silos' images stay with them"
    if task.reference is not None:
        return [f"not measured: {unseen}"]
    return [f"not measured: fidelity, utility, {unseen} (reference-root and evaluate-silos measure some of it)"]
