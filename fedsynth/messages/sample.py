"""``query.sample``: images that a silo draws, from its own model or its copy of the federated one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedsynth.messages.envelope import Answer, Reader, Reply, Request
from fedsynth.messages.fields import (
    MAX_CLASSES,
    MAX_STEPS,
    MessageError,
    array,
    array_record,
    image_spec,
    setting,
    several,
    tensor,
    text,
    whole,
)
from fedsynth.messages.transport import Arrays
from fedsynth.spec import ImageSpec


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleAnswer(Answer):
    """Drawn images.

    Attributes:
        images: uint8 (n, H, W, C).
    """

    images: torch.Tensor = tensor(array(4, torch.uint8), view=True)


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleRequest(Request[SampleAnswer]):
    """Which images to draw.

    Attributes:
        labels: class of every image, int64 (n,).
        numbers: which samples of the run's set these are, int64 (n,): each starts from the noise that it
            has in every method.
        spec: format and classes of the run.
        sampler: how to draw.
        weights: exchanged weights of the federated model; None: draw from the silo's own model.
        holders: silos that hold images of every class, as the server says.
        set_size: samples of the run's set, where it is to have others than ``num-samples``; None: that many.
        server_round, run_token: of the federated model, see :class:`~fedsynth.messages.train.TrainRequest`.
    """

    kind: ClassVar[str] = "query.sample"

    labels: torch.Tensor = tensor(array(1, torch.int64, low=0))
    numbers: torch.Tensor = tensor(array(1, torch.int64, low=0))
    spec: ImageSpec = image_spec()
    sampler: str = setting(text(r"[\w.:+-]{1,200}"))
    weights: Arrays | None = array_record("weights", None)
    server_round: int | None = setting(whole(1, MAX_STEPS), None)
    run_token: str | None = setting(text(r"[A-Za-z0-9_-]{1,64}"), None)
    holders: tuple[int, ...] | None = setting(several(whole(), MAX_CLASSES), None)
    set_size: int | None = setting(whole(1), None)

    def check(self) -> None:
        """Compare labels with numbers and classes, and numbers with the set."""
        if len(self.labels) != len(self.numbers):
            raise MessageError(f"{len(self.labels)} labels with {len(self.numbers)} numbers")
        if self.set_size is not None and len(self.numbers) and self.numbers.max() >= self.set_size:
            raise MessageError(f"number {int(self.numbers.max())} with a set of {self.set_size}")
        if len(self.labels) and self.labels.max() >= len(self.spec.classes):
            raise MessageError(f"label {int(self.labels.max())} with {len(self.spec.classes)} classes")

    def reader(self) -> Reader[SampleAnswer]:
        """Read the answer; it must hold every image that was asked for, in the run's format."""
        expected = (len(self.labels), self.spec.size, self.spec.size, self.spec.channels)

        def read(reply: Reply) -> SampleAnswer:
            answer = SampleAnswer.from_message(reply)
            if answer.images.shape != expected:
                raise MessageError(f"images have shape {tuple(answer.images.shape)}, not {expected}")
            return answer

        return read
