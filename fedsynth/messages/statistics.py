"""``query.statistics``: sums of features of a silo's real images, in a classifier of the synthetic set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedsynth.messages.envelope import Answer, Reader, Reply, Request
from fedsynth.messages.fields import MessageError, array, array_record, image_spec, metric, setting, tensor, text, whole
from fedsynth.messages.transport import Arrays
from fedsynth.spec import ImageSpec

HASH = text("[0-9a-f]{1,64}")


@dataclass(frozen=True, kw_only=True, eq=False)
class StatisticsAnswer(Answer):
    """Sums over all images of the silo.

    Attributes:
        num_examples: images.
        weights_hash: of the classifier they were seen through.
        total: sum of features less the shift, float64 (d,); None: the silo has too few images.
        products: sum of their outer products, float64 (d, d).
    """

    num_examples: int = metric(whole())
    weights_hash: str = setting(HASH)
    total: torch.Tensor | None = tensor(array(1, torch.float64), default=None)
    products: torch.Tensor | None = tensor(array(2, torch.float64), default=None)

    def check(self) -> None:
        """Ask for both sums or none, of one size."""
        if (self.total is None) != (self.products is None):
            raise MessageError("total and products must come together")
        if self.total is not None and self.products is not None and self.products.shape != (len(self.total),) * 2:
            raise MessageError(f"products have shape {tuple(self.products.shape)} beside {len(self.total)} totals")


@dataclass(frozen=True, kw_only=True, eq=False)
class StatisticsRequest(Request[StatisticsAnswer]):
    """The classifier.

    Attributes:
        weights: its state dict.
        weights_hash: of ``weights``.
        shift: subtracted from features before they are summed up, float64 (d,).
        spec: format and classes of the run.
        min_statistics_samples: a silo with fewer images answers their number alone.
    """

    kind: ClassVar[str] = "query.statistics"

    weights: Arrays = array_record("weights")
    weights_hash: str = setting(HASH)
    shift: torch.Tensor = tensor(array(1, torch.float64))
    spec: ImageSpec = image_spec()
    min_statistics_samples: int = setting(whole(2))

    def reader(self) -> Reader[StatisticsAnswer]:
        """Read the answer; it must be of this classifier, and of enough images."""
        sent = self.weights_hash
        fewest = self.min_statistics_samples

        def read(reply: Reply) -> StatisticsAnswer:
            answer = StatisticsAnswer.from_message(reply)
            check_hash(answer.weights_hash, sent)
            if answer.num_examples < fewest:
                raise MessageError(f"{answer.num_examples} images are too few, min-statistics-samples = {fewest}")
            if answer.total is None:
                raise MessageError("total and products are missing")
            return answer

        return read


def check_hash(stated: str, sent: str) -> None:
    """Refuse an answer about another classifier.

    Raises:
        MessageError: the hashes differ.
    """
    if stated != sent:
        raise MessageError("weights-hash: measured with another classifier than the one sent")
