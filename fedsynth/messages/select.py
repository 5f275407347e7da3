"""``query.select``: a silo gives pseudo-labels to unlabelled images; which they are, it keeps to itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedsynth.messages.envelope import Answer, Reader, Reply, Request
from fedsynth.messages.fields import (
    MAX_CLASSES,
    MessageError,
    array,
    array_record,
    image_spec,
    metric,
    setting,
    several,
    tensor,
    text,
    whole,
)
from fedsynth.messages.transport import Arrays
from fedsynth.spec import ImageSpec

_COUNTS = several(whole(), MAX_CLASSES)


@dataclass(frozen=True, kw_only=True, eq=False)
class SelectAnswer(Answer):
    """How many unlabelled images there are, by the class that the classifier predicts.

    Attributes:
        predicted: of each class.
        kept: those of them that are pseudo-labelled.
        correct: those of them whose true class it is, which a simulation knows; None: nobody does.
    """

    predicted: tuple[int, ...] = metric(_COUNTS)
    kept: tuple[int, ...] = metric(_COUNTS)
    correct: tuple[int, ...] | None = metric(_COUNTS, None)


@dataclass(frozen=True, kw_only=True, eq=False)
class SelectRequest(Request[SelectAnswer]):
    """The classifier, and what its predictions need.

    Attributes:
        weights: its state dict.
        thresholds: least confidence by predicted class, float64 (C,).
        spec: format and classes of the run.
        run_token: names the run, for what stays with the silo.
    """

    kind: ClassVar[str] = "query.select"

    weights: Arrays = array_record("weights")
    thresholds: torch.Tensor = tensor(array(1, torch.float64, low=0))
    spec: ImageSpec = image_spec()
    run_token: str = setting(text(r"[A-Za-z0-9_-]{1,64}"))

    def check(self) -> None:
        """Ask for one threshold a class."""
        if len(self.thresholds) != len(self.spec.classes):
            raise MessageError(f"{len(self.thresholds)} thresholds with {len(self.spec.classes)} classes")

    def reader(self) -> Reader[SelectAnswer]:
        """Read the answer; it must have a count a class."""
        classes = len(self.spec.classes)

        def read(reply: Reply) -> SelectAnswer:
            answer = SelectAnswer.from_message(reply)
            for counts in (answer.predicted, answer.kept, *([] if answer.correct is None else [answer.correct])):
                if len(counts) != classes:
                    raise MessageError(f"{len(counts)} counts with {classes} classes")
            return answer

        return read
