"""``query.statistics``: moments of features of a silo's real images, in a network that the silo has itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedsynth.messages.envelope import Answer, Reader, Reply, Request
from fedsynth.messages.fields import MessageError, array, image_spec, metric, real, setting, tensor, text, whole
from fedsynth.spec import ImageSpec

EXTRACTOR = text("[a-z0-9-]{1,64}")


@dataclass(frozen=True, kw_only=True, eq=False)
class StatisticsAnswer(Answer):
    """Moments over all images of the silo.

    Attributes:
        num_examples: images, as the silo tells their number anywhere else.
        extractor: network they were seen through.
        mean: of features, float64 (d,).
        products: mean of their outer products, float64 (d, d).
        noise: standard deviation of Gaussian noise in each entry of ``mean``.
    """

    num_examples: int = metric(whole())
    extractor: str = setting(EXTRACTOR)
    mean: torch.Tensor = tensor(array(1, torch.float64))
    products: torch.Tensor = tensor(array(2, torch.float64))
    noise: float = metric(real(0, 1), 0.0)

    def check(self) -> None:
        """Ask for moments of one size."""
        if self.products.shape != (len(self.mean),) * 2:
            raise MessageError(f"products have shape {tuple(self.products.shape)} beside a mean of {len(self.mean)}")


@dataclass(frozen=True, kw_only=True, eq=False)
class StatisticsRequest(Request[StatisticsAnswer]):
    """Names the network; the server sends none.

    Attributes:
        extractor: name of the network.
        spec: format and classes of the run.
    """

    kind: ClassVar[str] = "query.statistics"

    extractor: str = setting(EXTRACTOR)
    spec: ImageSpec = image_spec()

    def reader(self) -> Reader[StatisticsAnswer]:
        """Read the answer; it must be of this network."""
        asked = self.extractor

        def read(reply: Reply) -> StatisticsAnswer:
            answer = StatisticsAnswer.from_message(reply)
            if answer.extractor != asked:
                raise MessageError("extractor: measured with another network than the one asked for")
            return answer

        return read
