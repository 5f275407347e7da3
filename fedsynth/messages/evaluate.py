"""``evaluate``: how many of a silo's held-out images the synthetic set does well on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedsynth.messages.envelope import Answer, Reader, Reply, Request
from fedsynth.messages.fields import MessageError, array, array_record, image_spec, metric, setting, tensor, text, whole
from fedsynth.messages.statistics import EXTRACTOR
from fedsynth.messages.transport import Arrays
from fedsynth.spec import ImageSpec

HASH = text("[0-9a-f]{1,64}")


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluateAnswer(Answer):
    """Held-out images in four cells, each with noise of its own at a real silo.

    Attributes:
        num_examples: their sum.
        weights_hash: of the classifier used.
        right_inside: put into their class by the classifier, and inside the synthetic set's manifold.
        right_outside: put into their class, but outside.
        wrong_inside: put into another class, but inside.
        wrong_outside: neither.
    """

    num_examples: int = metric(whole())
    weights_hash: str = setting(HASH)
    right_inside: int = metric(whole())
    right_outside: int = metric(whole())
    wrong_inside: int = metric(whole())
    wrong_outside: int = metric(whole())

    def check(self) -> None:
        """Compare the number of images with the cells."""
        found = self.right_inside + self.right_outside + self.wrong_inside + self.wrong_outside
        if found != self.num_examples:
            raise MessageError(f"num-examples = {self.num_examples}, but the cells hold {found}")


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluateRequest(Request[EvaluateAnswer]):
    """A classifier of the synthetic set, and that set's manifold as balls.

    Attributes:
        weights: the classifier's state dict.
        weights_hash: of ``weights``.
        extractor: name of the silo's network whose features the balls are in.
        centres: features of the synthetic set, float32 (N, d).
        radii: of the balls around them, float64 (N,).
        spec: format and classes of the run.
    """

    kind: ClassVar[str] = "evaluate"

    weights: Arrays = array_record("weights")
    weights_hash: str = setting(HASH)
    extractor: str = setting(EXTRACTOR)
    centres: torch.Tensor = tensor(array(2))
    radii: torch.Tensor = tensor(array(1, torch.float64, low=0))
    spec: ImageSpec = image_spec()

    def check(self) -> None:
        """Ask for one radius a centre."""
        if len(self.centres) != len(self.radii):
            raise MessageError(f"{len(self.centres)} centres with {len(self.radii)} radii")

    def reader(self) -> Reader[EvaluateAnswer]:
        """Read the answer; it must be of this classifier."""
        sent = self.weights_hash

        def read(reply: Reply) -> EvaluateAnswer:
            answer = EvaluateAnswer.from_message(reply)
            if answer.weights_hash != sent:
                raise MessageError("weights-hash: measured with another classifier than the one sent")
            return answer

        return read
