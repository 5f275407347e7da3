"""``train``: a silo continues the federated model on its own images."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

from fedsynth.messages.envelope import Answer, Reader, Request
from fedsynth.messages.fields import (
    ENVELOPE,
    KEYS,
    LOSS,
    MAX_LOSS,
    MAX_STEPS,
    array_record,
    flag,
    image_spec,
    metric,
    real,
    setting,
    several,
    text,
    whole,
)
from fedsynth.messages.transport import Arrays
from fedsynth.spec import ImageSpec

DIFFUSION, CLASSIFIER = "diffusion", "classifier"
RUN_TOKEN = text(r"[A-Za-z0-9_-]{1,64}")
IMAGES = ("first", "labelled", "pseudo", "synthetic", "fixmatch", "all")
"""What a silo of few labels trains on: its labelled images, but for ``first`` those that count its confusions; with
``pseudo`` its pseudo-labelled ones besides, with ``synthetic`` those it synthesised, with ``fixmatch`` its unlabelled
ones without labels, with ``all``, in a simulation, with their true ones."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainAnswer(Answer):
    """Weights after a round.

    Attributes:
        arrays: weights of the parts that were asked for, by state dict name; whoever knows the model checks them
            (:func:`strategies.averaging.aggregation.check_model`).
        num_examples: training images.
        loss: mean over the round's steps.
        statement: the silo's signed word on these weights, where silos aggregate.
    """

    arrays: Arrays = array_record()
    num_examples: int = metric(whole())
    loss: float | None = metric(LOSS, None)
    statement: str | None = setting(ENVELOPE, None)


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingSteps:
    """What a silo is to do in a round of averaging, however it gets the weights.

    Attributes:
        spec: format and classes of the run.
        server_round: 1 for the first.
        steps: optimiser steps of this round.
        first_step: steps of train-steps that belong to earlier rounds, by which the learning rate has fallen.
        proximal_mu: weight of FedProx's term.
        has_trained: whether the silo took part in an earlier round, so that it must have kept tensors of its own.
    """

    spec: ImageSpec = image_spec()
    server_round: int = setting(whole(1, MAX_STEPS))
    steps: int = setting(whole(0, MAX_STEPS))
    first_step: int = setting(whole(0, MAX_STEPS), 0)
    proximal_mu: float = setting(real(0, MAX_LOSS), 0.0)
    has_trained: bool = setting(flag, False)

    def training_steps(self) -> dict[str, Any]:
        """Return these attributes by name, for a question of another kind about the same round."""
        return {info.name: getattr(self, info.name) for info in fields(TrainingSteps)}


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingRound(TrainingSteps):
    """The same with the weights, however it answers.

    Attributes:
        arrays: the exchanged weights; tensors of the network that are not among them are the silo's own and stay on
            its disk.
    """

    arrays: Arrays = array_record()

    def training_round(self) -> dict[str, Any]:
        """Return steps and weights by name, as :meth:`training_steps`."""
        return {**self.training_steps(), "arrays": self.arrays}


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainRequest(TrainingRound, Request[TrainAnswer]):
    """Weights to continue from.

    Attributes:
        run_token: names the run, for what stays with the silo.
        report_parts: parts of the network to answer; None: all.
        keys: the public keys of all silos, as text, where silos aggregate (:mod:`fedsynth.replicas`).
        certificates: of the rounds since the last that the silo has heard of, oldest first.
        model: what the weights are of, :data:`DIFFUSION` or :data:`CLASSIFIER`.
        images: what to train on, one of :data:`IMAGES`, where labels are few; None: everything.
    """

    kind: ClassVar[str] = "train"

    run_token: str | None = setting(RUN_TOKEN, None)
    report_parts: tuple[str, ...] | None = setting(several(text(r"[a-z]{1,32}"), 10), None)
    keys: str | None = setting(KEYS, None)
    certificates: tuple[str, ...] = setting(several(ENVELOPE), ())
    model: str = setting(text(f"{DIFFUSION}|{CLASSIFIER}"), DIFFUSION)
    images: str | None = setting(text("|".join(IMAGES)), None)

    def reader(self) -> Reader[TrainAnswer]:
        """Read the answer by itself."""
        return TrainAnswer.from_message
