"""``query.prepare``: what a silo holds, and a slice of the training of its own model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedsynth.messages.envelope import Answer, Reader, Request
from fedsynth.messages.fields import (
    LOSS,
    MAX_CLASSES,
    MAX_SECONDS,
    MAX_STEPS,
    MessageError,
    flag,
    image_spec,
    metric,
    real,
    setting,
    several,
    text,
    whole,
)
from fedsynth.spec import ImageSpec


@dataclass(frozen=True, kw_only=True, eq=False)
class PrepareAnswer(Answer):
    """What the silo holds and, if it was asked to train, how far its own model is.

    Attributes:
        label_counts: training images per class.
        steps: optimiser steps so far; None: it was not asked to train.
        loss: mean of the last steps; None of a private training.
        finished: whether the model is ready; the other fields are of a finished model.
        train_seconds: time its training took, now or in an earlier run.
        curve_steps, curve_losses: its loss curve; empty of a private training.
        sum_keys: its public keys for secure sums, 128 hexadecimal digits; None: it has none.
        copied_share: share of its samples that are near-copies of training images; None: not measured.
    """

    introduces: ClassVar[bool] = True

    label_counts: tuple[int, ...] = metric(several(whole(), MAX_CLASSES), ())
    steps: int | None = metric(whole(0, MAX_STEPS), None)
    loss: float | None = metric(LOSS, None)
    finished: bool = metric(flag, False)
    train_seconds: float = metric(real(0, MAX_SECONDS), 0.0)
    curve_steps: tuple[float, ...] = metric(several(real(0, MAX_STEPS)), ())
    curve_losses: tuple[float, ...] = metric(several(LOSS), ())
    copied_share: float | None = metric(real(0, 1), None)
    sum_keys: str | None = setting(text(r"[0-9a-f]{128}"), None)

    def check(self) -> None:
        """Compare the two halves of the curve, and ask for one of a finished model."""
        if len(self.curve_steps) != len(self.curve_losses):
            raise MessageError(f"{len(self.curve_steps)} curve-steps, but {len(self.curve_losses)} curve-losses")
        if self.finished and not self.curve_steps:
            raise MessageError("a finished model without a loss curve")

    @property
    def curve(self) -> list[tuple[int, float]]:
        """The loss curve as (step, loss)."""
        return [(int(step), loss) for step, loss in zip(self.curve_steps, self.curve_losses, strict=True)]


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingSlice(PrepareAnswer):
    """The answer of a silo that was asked to train."""

    def check(self) -> None:
        """Ask for the progress, too."""
        super().check()
        for key, value in (("steps", self.steps), ("loss", self.loss)):
            if value is None:
                raise MessageError(f"{key} is missing")


@dataclass(frozen=True, kw_only=True, eq=False)
class PrivateTrainingSlice(PrepareAnswer):
    """The answer of a silo that was asked to train privately."""

    def check(self) -> None:
        """Ask for the progress, and for nothing else that the images have an influence on."""
        if self.steps is None:
            raise MessageError("steps is missing")
        if self.loss is not None or self.curve_steps or self.curve_losses or self.copied_share is not None:
            raise MessageError("a loss or a share of copies, in a run with dp-epsilon")


@dataclass(frozen=True, kw_only=True, eq=False)
class PrepareRequest(Request[PrepareAnswer]):
    """Asks what the silo holds, and to train for a while.

    Attributes:
        spec: format and classes of the run.
        train_seconds: how long to train the silo's own model; 0: not at all.
        codec: digest of the run's codec; None: the silo's own will do.
        start: digest of the public model that the run's networks start from; None: there is none, or the silo's own
            will do.
        private: whether it trains with differential privacy, as the run's ``dp-epsilon`` says, and so tells no losses.
        images: where labels are few, what the silo's own model is trained on: ``labelled`` images, or with ``pseudo``
            its pseudo-labelled ones besides; None: everything.
        run_token: names the run, for what stays with the silo.
    """

    introduces: ClassVar[bool] = True
    kind: ClassVar[str] = "query.prepare"

    spec: ImageSpec = image_spec()
    train_seconds: float = setting(real(0, MAX_SECONDS), 0.0)
    codec: str | None = setting(text(r"[a-z][a-z0-9-]{1,30}( [0-9a-f]{64})?"), None)
    start: str | None = setting(text(r"[0-9a-f]{64}"), None)
    private: bool = setting(flag, False)
    images: str | None = setting(text("labelled|pseudo"), None)
    run_token: str | None = setting(text(r"[A-Za-z0-9_-]{1,64}"), None)

    def reader(self) -> Reader[PrepareAnswer]:
        """Read the answer; it must tell of the training if any was asked for."""
        if not self.train_seconds:
            return PrepareAnswer.from_message
        return PrivateTrainingSlice.from_message if self.private else TrainingSlice.from_message
