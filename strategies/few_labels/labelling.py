"""What the silos counted of their images, and what follows from it: which predictions become pseudo-labels."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from fedsynth.config.methods import DDSASettings
from fedsynth.few_labels.selection import CONFIDENCE, NEVER, precision_thresholds
from fedsynth.messages import ConfusionAnswer, SelectAnswer, SynthesiseAnswer
from strategies.few_labels.findings import Findings
from strategies.few_labels.schedule import Kind

logger = logging.getLogger("fedsynth")


class Counted(NamedTuple):
    """What a round of counting came to.

    Attributes:
        silos: how many answered.
        seconds: of all silos together.
        matrix: sum of their confusion matrices, int64 (C, C, bins).
    """

    silos: int
    seconds: float
    matrix: torch.Tensor


def note_answers(
    found: Findings, kind: Kind, answers: Iterator[tuple[int, Any]], names: Sequence[str], classes: int, bins: int
) -> Counted:
    """Note in ``found`` what the silos counted; it does not depend on who answers first.

    Args:
        found: changed in place.
        kind: of the phase: confusion, selection or synthesis.
        answers: with the silo's index.
        names: of the silos.
        classes: C.
        bins: of a confusion matrix.
    """
    nothing = [[0] * classes for _ in names]
    if kind == "selection":
        found.predicted, found.kept, found.correct = ([list(row) for row in nothing] for _ in range(3))
    elif kind == "synthesis":
        found.made = nothing
    silos, seconds, unknown = 0, 0.0, False
    matrix = torch.zeros((classes, classes, bins), dtype=torch.int64)
    for k, answer in answers:
        silos, seconds = silos + 1, seconds + answer.seconds
        match answer:
            case ConfusionAnswer():
                matrix += answer.matrix
            case SelectAnswer():
                found.predicted[k], found.kept[k] = list(answer.predicted), list(answer.kept)
                unknown |= answer.correct is None
                found.correct[k] = list(answer.correct or nothing[k])
                if not any(answer.predicted):
                    logger.warning("%s tells of no unlabelled images", names[k])
            case SynthesiseAnswer():
                found.made[k] = list(answer.made)
    if unknown:
        found.correct = []
    return Counted(silos, seconds, matrix)


def set_thresholds(
    found: Findings,
    settings: DDSASettings,
    classes: Sequence[str],
    label_counts: torch.Tensor,
    matrix: torch.Tensor | None = None,
) -> None:
    """Decide what becomes a pseudo-label: by the silos' confusions, or by the rule that needs none.

    Args:
        found: whose thresholds are set.
        settings: of the run.
        classes: names of the C classes.
        label_counts: labelled images by silo and class (K, C); nobody's class gets no pseudo-labels.
        matrix: of all silos together, int64 (C, C, bins); None: the rule needs none.
    """
    if matrix is None:
        least = CONFIDENCE if settings.pseudo_selection == "confidence" else 0.0
        confidence, reached = torch.full((len(classes),), least), torch.ones(len(classes), dtype=torch.bool)
    else:
        confidence, reached = precision_thresholds(matrix, settings.pseudo_precision)
    # What nobody labels, no classifier has learnt.
    confidence[label_counts.sum(0) == 0] = NEVER
    found.thresholds, found.reached = confidence.tolist(), reached.tolist()
    short = [name for name, good, at in zip(classes, reached, confidence, strict=True) if not good and at < NEVER]
    if short:
        logger.warning(
            "pseudo-labels of class %s are not known to be as precise as pseudo-precision = %g: those of the highest"
            " precision are taken",
            ", ".join(short),
            settings.pseudo_precision,
        )
