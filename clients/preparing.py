"""Before the rounds: what a silo is asked about itself, and the training of its own model, in turns."""

from __future__ import annotations

import time
from dataclasses import replace

from clients.context import SiloContext
from clients.few_labels import own_model_images
from clients.gate import told_policy
from clients.models.local_model import LocalModel
from clients.models.pretrained_model import brings_model, measure_loss, model_note, note_pretrained_model
from clients.own_model import LOCAL_MODEL, own_predictor
from clients.self_check import check_own_model
from clients.summing import own_keys
from clients.told_counts import told_counts
from clients.told_losses import rounded_mean, told_curve, told_loss
from fedsynth.config.methods import DfDSettings
from fedsynth.data import Silo
from fedsynth.diffusion import codec_of, loss_curve, start_of
from fedsynth.diffusion.adapters import adapters_of
from fedsynth.errors import UserError
from fedsynth.messages import DescribeAnswer, DescribeRequest, PrepareAnswer, PrepareRequest
from fedsynth.privacy.dp_training import check_delta
from fedsynth.roles import AGGREGATOR
from fedsynth.spec import ImageSpec


def describe(request: DescribeRequest, silo: SiloContext) -> DescribeAnswer:
    """Say which classes the silo holds, in which format, and what its policy allows; or that it aggregates."""
    told = DescribeAnswer(spec=silo.describe(), policy=told_policy(silo))
    if not silo.is_aggregator:
        return told
    keys = own_keys(silo)
    return replace(told, role=AGGREGATOR, sum_keys=None if keys is None else keys.public.text)


def prepare(request: PrepareRequest, silo: SiloContext) -> PrepareAnswer:
    """Say what the silo holds and, when asked for ``train_seconds``, train its own model for a while.

    A silo with a pretrained model has nothing to train, and counts no images of classes that its model does not know.

    Raises:
        UserError: the model is finished, would answer where no server screens it, and fails the silo's check.
    """
    answer, config = _prepared(request, silo), silo.config
    unscreened = config.cooperation.secure_aggregation or config.replicated
    if answer.finished and unscreened and isinstance(config.settings, DfDSettings) and config.cooperation.screening:
        check_own_model(own_predictor(silo), answer, request.spec, silo)
    return answer


def _prepared(request: PrepareRequest, silo: SiloContext) -> PrepareAnswer:
    config = silo.config
    _check_codec(request, silo)
    _check_start(request, silo)
    images = own_model_images(request, silo)
    if config.private and brings_model(silo):
        raise UserError("model-path: nobody here knows how private that model is, and the run has a dp-epsilon")
    pretrained = note_pretrained_model(silo, request.spec)
    counts = told_counts(silo, request.spec, 1 if pretrained is None else pretrained.serves)
    keys = own_keys(silo) if config.secure_sums or config.replicated else None
    held_only = PrepareAnswer(
        num_examples=int(counts.sum()),
        label_counts=tuple(counts.tolist()),
        sum_keys=None if keys is None else keys.public.text,
    )
    if not request.train_seconds:
        return held_only
    exact = silo.policy.tell_train_loss
    if pretrained is not None:
        measured = measure_loss(pretrained, images, config)
        loss = measured if exact else rounded_mean([measured])
        steps = config.own_steps
        return replace(
            held_only, steps=steps, loss=loss, finished=True, curve_steps=(float(steps),), curve_losses=(loss,)
        )
    seconds = max(0.0, min(request.train_seconds, silo.deadline - time.monotonic()))
    if config.private:
        return _prepare_privately(held_only, images, request.spec, seconds, silo)
    least_steps = -(-silo.policy.least_training_images // config.training.batch_size)
    with silo.explained_state(), silo.keeping_latents(request.spec) as codec:
        told_held_out = silo.told_held_out(request.spec)
        model = LocalModel(images, request.spec, config, silo.state, told_held_out, codec=codec)
        training = None if model.finished else model.train_in_turn(seconds)
        while training is not None and not model.finished and not exact and training.steps < least_steps:
            silo.check_deadline()
            training = model.train_in_turn(seconds)
        if training is not None and not model.finished:
            losses = training.losses
            loss = loss_curve(losses)["losses"][-1] if exact else told_loss(losses, least_steps)
            return replace(held_only, steps=training.steps, loss=loss)
        silo.note(LOCAL_MODEL, model_note(request.spec, {"path": str(model.folder), "hash": model.key}))
        history = model.history()
        curve = history if exact else told_curve(history, least_steps)
        return replace(
            held_only,
            steps=int(history["steps"][-1]),
            loss=curve["losses"][-1],
            finished=True,
            train_seconds=history["seconds"],
            curve_steps=tuple(curve["steps"]),
            curve_losses=tuple(curve["losses"]),
            copied_share=model.copied_share(),
        )


def _prepare_privately(
    held_only: PrepareAnswer, images: Silo, spec: ImageSpec, seconds: float, silo: SiloContext
) -> PrepareAnswer:
    """Train the silo's own model for a while, and tell of it how many steps it has had and nothing else."""
    check_delta(silo.config, held_only.num_examples)
    with silo.explained_state(), silo.keeping_latents(spec) as codec:
        model = LocalModel(
            images,
            spec,
            silo.config,
            silo.state,
            told_images=held_only.num_examples,
            before_steps=silo.before_private_steps(spec),
            codec=codec,
        )
        training = None if model.finished else model.train_in_turn(seconds)
        if training is not None and not model.finished:
            return replace(held_only, steps=training.steps)
        silo.note(LOCAL_MODEL, model_note(spec, {"path": str(model.folder), "hash": model.key}))
        history = model.history()
    return replace(held_only, steps=int(history["steps"][-1]), finished=True, train_seconds=history["seconds"])


def _check_codec(request: PrepareRequest, silo: SiloContext) -> None:
    own = codec_of(silo.config, request.spec).digest
    if request.codec not in (None, own):
        based = silo.config.model.base_model
        remedy = "base model (--base-model)" if based else "autoencoder (--autoencoder-path)"
        raise UserError(
            f"codec: the run's networks see '{request.codec}', those of this silo would see '{own}': give the silo the"
            f" run's {remedy}, file by file the same"
        )


def _check_start(request: PrepareRequest, silo: SiloContext) -> None:
    start = start_of(silo.config)
    adapters_of(silo.config)  # which says what is missing for them
    if start is not None and request.start not in (None, start.digest):
        raise UserError(
            f"{start.key}: the run's networks start from the {start.noun} '{request.start}', that of this silo is"
            f" '{start.digest}': give the silo the run's (--{start.key}), file by file the same"
        )
