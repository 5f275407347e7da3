"""``evaluate``: how the classifier and the features of the synthetic set do on a silo's held-out images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedsynth.messages.envelope import Answer, Reader, Reply, Request
from fedsynth.messages.fields import (
    MAX_CLASSES,
    array,
    image_spec,
    metric,
    real,
    setting,
    several,
    tensor,
    whole,
)
from fedsynth.messages.statistics import HASH, check_hash
from fedsynth.spec import ImageSpec


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluateAnswer(Answer):
    """Measures on held-out images.

    Attributes:
        num_examples: held-out images.
        weights_hash: of the classifier used.
        label_counts: held-out images per class; empty: the silo has too few.
        label_correct: those that are classified correctly.
        coverage: share whose neighbourhood holds a synthetic image, 0 to 1.
    """

    num_examples: int = metric(whole())
    weights_hash: str = setting(HASH)
    label_counts: tuple[int, ...] = metric(several(whole(), MAX_CLASSES), ())
    label_correct: tuple[int, ...] = metric(several(whole(), MAX_CLASSES), ())
    coverage: float | None = metric(real(0, 1), None)


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluateRequest(Request[EvaluateAnswer]):
    """Features of the synthetic set; the classifier is the one of ``query.statistics``.

    Attributes:
        weights_hash: of that classifier.
        features: float32 (N, d).
        spec: format and classes of the run.
    """

    kind: ClassVar[str] = "evaluate"

    weights_hash: str = setting(HASH)
    features: torch.Tensor = tensor(array(2))
    spec: ImageSpec = image_spec()

    def reader(self) -> Reader[EvaluateAnswer]:
        """Read the answer; it must be of this classifier."""
        sent = self.weights_hash

        def read(reply: Reply) -> EvaluateAnswer:
            answer = EvaluateAnswer.from_message(reply)
            check_hash(answer.weights_hash, sent)
            return answer

        return read
