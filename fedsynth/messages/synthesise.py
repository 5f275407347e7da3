"""``query.synthesise``: a silo draws images for itself from the federated model, or is given them; they stay there."""

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


@dataclass(frozen=True, kw_only=True, eq=False)
class SynthesiseAnswer(Answer):
    """What was drawn, or kept of what was given.

    Attributes:
        made: images of every class.
    """

    made: tuple[int, ...] = metric(several(whole(), MAX_CLASSES))


@dataclass(frozen=True, kw_only=True, eq=False)
class SynthesiseRequest(Request[SynthesiseAnswer]):
    """How many images to draw, or the images themselves.

    Attributes:
        weights: of the federated diffusion model; None: ``images`` have been drawn by others.
        images: what silos drew for this one, uint8 (n, H, W, C), sorted by class; None: the silo draws them.
        quota: images of every class.
        sampler: how to draw.
        spec: format and classes of the run.
        run_token: names the run, for what stays with the silo.
    """

    kind: ClassVar[str] = "query.synthesise"

    weights: Arrays | None = array_record("weights", None)
    images: torch.Tensor | None = tensor(array(4, torch.uint8), "images", default=None)
    quota: tuple[int, ...] = setting(several(whole(), MAX_CLASSES))
    sampler: str = setting(text(r"[\w.:+-]{1,200}"))
    spec: ImageSpec = image_spec()
    run_token: str = setting(text(r"[A-Za-z0-9_-]{1,64}"))

    def check(self) -> None:
        """Ask for one number a class, and for weights or as many images of the run's format."""
        if len(self.quota) != len(self.spec.classes):
            raise MessageError(f"{len(self.quota)} numbers with {len(self.spec.classes)} classes")
        if (self.weights is None) == (self.images is None):
            raise MessageError("weights or images: one of the two must be there")
        expected = (sum(self.quota), self.spec.size, self.spec.size, self.spec.channels)
        if self.images is not None and self.images.shape != expected:
            raise MessageError(f"images have shape {tuple(self.images.shape)}, not {expected}")

    def reader(self) -> Reader[SynthesiseAnswer]:
        """Read the answer; as many images must have been made as were asked for."""
        asked = self.quota

        def read(reply: Reply) -> SynthesiseAnswer:
            answer = SynthesiseAnswer.from_message(reply)
            if answer.made != asked:
                raise MessageError("made: other numbers of images than were asked for")
            return answer

        return read
