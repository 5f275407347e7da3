"""``query.confusion``: how a classifier does on a silo's labelled images that it never saw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedsynth.messages.envelope import Answer, Reader, Reply, Request
from fedsynth.messages.fields import (
    LARGEST_WHOLE,
    MessageError,
    array,
    array_record,
    image_spec,
    setting,
    tensor,
    whole,
)
from fedsynth.messages.transport import Arrays
from fedsynth.spec import ImageSpec

MAX_BINS = 1000
MAX_CELLS = 10_000_000
"""Of a confusion matrix: 80 MB."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ConfusionAnswer(Answer):
    """Images by class, predicted class and bin of confidence.

    Attributes:
        matrix: int64 (C, C, B); below 0 where there is noise in it.
    """

    matrix: torch.Tensor = tensor(array(3, torch.int64, low=-LARGEST_WHOLE))


@dataclass(frozen=True, kw_only=True, eq=False)
class ConfusionRequest(Request[ConfusionAnswer]):
    """The classifier.

    Attributes:
        weights: its state dict.
        bins: B, bins of confidence.
        spec: format and classes of the run.
    """

    kind: ClassVar[str] = "query.confusion"

    weights: Arrays = array_record("weights")
    bins: int = setting(whole(1, MAX_BINS))
    spec: ImageSpec = image_spec()

    def check(self) -> None:
        """Bound what a silo has to hold."""
        if (cells := len(self.spec.classes) ** 2 * self.bins) > MAX_CELLS:
            raise MessageError(
                f"{len(self.spec.classes)} classes, pseudo-bins = {self.bins}: {cells:,} cells of a confusion matrix,"
                f" must be <= {MAX_CELLS:,}: lower pseudo-bins"
            )

    def reader(self) -> Reader[ConfusionAnswer]:
        """Read the answer; it must have the run's classes and as many bins as were asked for."""
        expected = (len(self.spec.classes), len(self.spec.classes), self.bins)

        def read(reply: Reply) -> ConfusionAnswer:
            answer = ConfusionAnswer.from_message(reply)
            if answer.matrix.shape != expected:
                raise MessageError(f"matrix has shape {tuple(answer.matrix.shape)}, not {expected}")
            if answer.matrix.max() > LARGEST_WHOLE:
                raise MessageError(f"matrix has a value {int(answer.matrix.max())}: must be <= {LARGEST_WHOLE}")
            return answer

        return read
