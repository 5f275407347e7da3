"""What a silo does for each message: one function per message, from its request to its answer.

Those that measure real images are in :mod:`clients.measuring`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import UNet2DModel

from clients.context import SiloContext
from clients.gate import told_policy
from clients.kept_round import KeptRound, question_of
from clients.models.federated_model import FederatedModel
from clients.models.local_model import LocalModel, load_own_network
from clients.models.pretrained_model import (
    PRETRAINED_MODEL,
    brings_model,
    measure_loss,
    model_note,
    note_pretrained_model,
    noted_spec,
    pretrained_model,
    uploadable_network,
)
from clients.self_check import check_own_model
from clients.silo_cache import SiloCache
from clients.summing import SumQuestion, own_keys
from clients.told_counts import told_counts, told_number
from clients.told_losses import rounded_mean, told_curve, told_loss
from fedsynth.config.methods import DfDSettings
from fedsynth.data import Silo
from fedsynth.diffusion import (
    PARTS,
    EncodedImages,
    TrainingState,
    codec_of,
    draw_initial_noise,
    initial_unet,
    loss_curve,
    make_scheduler,
    noise_predictor,
    part_of,
    pick_device,
    select_parts,
    start_of,
)
from fedsynth.diffusion import sample as draw
from fedsynth.diffusion import train as train_network
from fedsynth.diffusion.adapters import AdaptedUNet, adapters_of
from fedsynth.diffusion.denoiser import Denoiser, num_classes
from fedsynth.diffusion.sampling import PredictNoise
from fedsynth.errors import UserError
from fedsynth.messages import (
    AggregateAnswer,
    AggregateRequest,
    DescribeAnswer,
    DescribeRequest,
    EpsilonAnswer,
    EpsilonRequest,
    MaskedAnswer,
    MaskedRequest,
    MaskedTrainRequest,
    PrepareAnswer,
    PrepareRequest,
    SampleAnswer,
    SampleRequest,
    TrainAnswer,
    TrainRequest,
    UploadAnswer,
    UploadRequest,
    transport,
)
from fedsynth.messages.transport import Arrays
from fedsynth.privacy.dp_training import check_delta, private_training, secret_generator, train_privately
from fedsynth.privacy.sums.fixed_point import to_fixed
from fedsynth.privacy.sums.noise import noise_step, weights_of_samples
from fedsynth.privacy.sums.updates import check_total_weights, encode_updates
from fedsynth.seeding import make_generator
from fedsynth.spec import ImageSpec

logger = logging.getLogger("fedsynth")

LOCAL_MODEL = "local-model"

_networks: SiloCache[Denoiser] = SiloCache()
_predictors: SiloCache[PredictNoise] = SiloCache()


def describe(request: DescribeRequest, silo: SiloContext) -> DescribeAnswer:
    """Say which classes the silo holds, in which format, and what its policy allows."""
    return DescribeAnswer(spec=silo.describe(), policy=told_policy(silo))


def prepare(request: PrepareRequest, silo: SiloContext) -> PrepareAnswer:
    """Say what the silo holds and, when asked for ``train_seconds``, train its own model for a while.

    A silo with a pretrained model has nothing to train, and counts no images of classes that its model does not know.

    Raises:
        UserError: the model is finished, would answer in sums, and fails the silo's check.
    """
    answer, config = _prepared(request, silo), silo.config
    summed = config.cooperation.secure_aggregation and isinstance(config.settings, DfDSettings)
    if answer.finished and summed and config.cooperation.screening:
        check_own_model(_own_predictor(silo), answer, request.spec, silo)
    return answer


def _prepared(request: PrepareRequest, silo: SiloContext) -> PrepareAnswer:
    config = silo.config
    _check_codec(request, silo)
    _check_start(request, silo)
    images = silo.images(request.spec)
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
    with silo.explained_state():
        model = LocalModel(images, request.spec, config, silo.state, silo.told_held_out(request.spec))
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
    with silo.explained_state():
        model = LocalModel(
            images,
            spec,
            silo.config,
            silo.state,
            told_images=held_only.num_examples,
            before_steps=silo.before_private_steps(spec),
        )
        training = None if model.finished else model.train_in_turn(seconds)
        if training is not None and not model.finished:
            return replace(held_only, steps=training.steps)
        silo.note(LOCAL_MODEL, model_note(spec, {"path": str(model.folder), "hash": model.key}))
        history = model.history()
    return replace(held_only, steps=int(history["steps"][-1]), finished=True, train_seconds=history["seconds"])


def epsilon(request: EpsilonRequest, silo: SiloContext) -> EpsilonAnswer:
    """Return the own model's noise prediction for samples, all at one timestep or each at its own.

    Raises:
        UserError: a timestep or a class that the run does not have, or samples that are not of its networks' shape.
        PolicyError: a class of few images, or no more time.
    """
    noted = silo.noted(PRETRAINED_MODEL) or silo.noted(LOCAL_MODEL)
    spec = None if noted is None else noted_spec(noted)
    _check_question(request, spec, silo)
    if spec is not None:
        _refuse_rare_classes(request.labels, spec, silo)
    predict = _own_predictor(silo)
    if request.timesteps is None:
        assert request.timestep is not None  # a request has one of the two
        predicted = predict(request.samples, request.timestep, request.labels)
    else:
        # One timestep after the other: not every pretrained network takes several in one batch.
        predicted = torch.empty_like(request.samples)
        for timestep in request.timesteps.unique().tolist():
            silo.check_deadline()
            rows = torch.nonzero(request.timesteps == timestep).squeeze(1)
            predicted[rows] = predict(request.samples[rows], timestep, request.labels[rows])
    dtype = silo.config.exchange.wire_dtype
    return EpsilonAnswer(epsilon=predicted, num_examples=len(predicted), wire_dtype=dtype)


def masked(request: MaskedRequest, silo: SiloContext) -> MaskedAnswer:
    """Return the own model's noise prediction for samples of classes that it is asked about, weighted and masked.

    The question is checked as a whole before anything is computed.

    Raises:
        UserError: as :func:`epsilon`, or an answer would not be hidden, see :mod:`fedsynth.privacy.sums`.
        PolicyError: a class of few images, or no more time.
    """
    step = noise_step(request.timestep, request.part, silo.config.recipe.num_train_timesteps)
    question = SumQuestion(request, step, silo)
    weights = weights_of_samples(question.row, request.labels)
    rows = torch.nonzero(weights).squeeze(1)
    predicted = torch.zeros_like(request.samples)
    if len(rows):
        asked = EpsilonRequest(samples=request.samples[rows], labels=request.labels[rows], timestep=request.timestep)
        predicted[rows] = epsilon(asked, silo).epsilon
    numbers = to_fixed(predicted.numpy(), weights.numpy().reshape(-1, 1, 1, 1))
    return question.answer(numbers.ravel(), len(predicted))


def sample(request: SampleRequest, silo: SiloContext) -> SampleAnswer:
    """Draw images of the labels asked for from the own model or, given ``weights``, the federated one.

    Raises:
        PolicyError: a class of few images, or no more time.
    """
    config = silo.config
    _refuse_rare_classes(request.labels, request.spec, silo)
    codec, recipe = codec_of(config, request.spec), config.recipe
    noise = draw_initial_noise(config.run.seed, config.sampling.num_samples, codec.shape)[request.numbers]
    generator = make_generator(config.run.seed, "sampling", silo.name)
    scheduler = make_scheduler(recipe, config.sampling.sampling_steps, request.sampler, codec.bound)
    if request.weights is None:
        predict = _own_predictor(silo)
    else:
        model = _federated_model(silo, request.spec, request.weights, request.run_token)
        unet = model.after(request.server_round or 0).to(pick_device(config.run.device))
        predict = noise_predictor(unet, recipe, codec.bound)
    drawn = draw(predict, scheduler, noise, request.labels, generator, on_step=lambda _: silo.check_deadline())
    images = torch.from_numpy(codec.decode(drawn))
    return SampleAnswer(images=images, num_examples=len(images))


def train(request: TrainRequest, silo: SiloContext) -> TrainAnswer:
    """Continue from the received weights on the silo's images, with a fresh optimiser.

    Tensors of the network that the request leaves out are personal: the silo keeps them on its disk, under the run's
    token, from one round that it takes part in to the next, and no answer holds them, whatever parts it asks for.
    """
    parts = list(PARTS if request.report_parts is None else request.report_parts)
    select_parts({}, parts)  # an unknown part is refused before any work
    sign = _signer(request, silo)
    exchanged, losses = _train_round(request, silo)
    arrays = transport.encode_tensors(select_parts(exchanged, parts), silo.config.exchange.wire_dtype)
    told = told_number(silo, request.spec)
    return TrainAnswer(
        arrays=arrays,
        num_examples=told,
        statement=None if sign is None else sign(arrays, told),
        loss=sum(losses) / len(losses) if losses and silo.policy.tell_train_loss else None,
    )


def aggregate(request: AggregateRequest, silo: SiloContext) -> AggregateAnswer:
    """Combine the updates of all silos, and sign what comes of it, see :func:`clients.replicating.aggregate`."""
    from clients import replicating  # only here: most runs need none of its signatures

    return replicating.aggregate(request, silo)


def masked_train(request: MaskedTrainRequest, silo: SiloContext) -> MaskedAnswer:
    """Continue from the received weights as :func:`train` does, and return what that changes, weighted and masked.

    The question is checked as a whole before anything is computed. No loss is told.

    Raises:
        UserError: as :func:`train`, or an answer would not be hidden, see :mod:`fedsynth.privacy.sums`.
        PolicyError: training is forbidden, or no more time.
    """
    question = SumQuestion(request, request.server_round, silo)
    check_total_weights(request.weights.double().tolist())
    names, parts = request.layers, request.parts
    weights = [question.row[parts.index(part_of(name)) if parts else 0] for name in names]
    received = transport.decode_tensors(request.arrays)
    trained, _ = _train_round(request.training(), silo)
    updates = [trained[name].double().cpu() - received[name].double() for name in names]
    if clamped := sum(int((u.abs() > size).sum()) for u, size in zip(updates, request.ranges, strict=True)):
        logger.warning("round %d: %d weights changed by more than can be summed", request.server_round, clamped)
    return question.answer(encode_updates(updates, weights, request.ranges))


def _signer(request: TrainRequest, silo: SiloContext) -> Callable[[Arrays, int], str] | None:
    """Return what signs the silo's update, before it trains; None where the server aggregates."""
    if not silo.config.replicated:
        return None
    from clients import replicating  # only here: most runs need none of its signatures

    replica, terms = replicating.replica_of(request, silo)
    return lambda arrays, images: replica.signed_update(terms, arrays, images)


def _train_round(request: TrainRequest, silo: SiloContext) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Return the exchanged weights after a round's steps, and the steps' losses, none of private ones."""
    config = silo.config
    images = silo.images(request.spec).train
    model = _federated_model(silo, request.spec, request.arrays, request.run_token)
    unet = model.before(request.server_round, request.has_trained).to(pick_device(config.run.device))
    if isinstance(unet, AdaptedUNet) and unet.adapters.stacked:
        unet.fold(request.server_round)
    encoded = EncodedImages(images.images, codec_of(config, request.spec), config.training.augmentations())
    losses: list[float] = []
    if config.private:
        _train_round_privately(request, unet, encoded, torch.from_numpy(images.labels), silo)
    else:
        generator = make_generator(config.run.seed, "federated-training", silo.name, request.server_round)
        losses = train_network(
            TrainingState(unet, config.recipe, generator, config.train_steps, request.first_step),
            encoded,
            torch.from_numpy(images.labels),
            config.training,
            request.steps,
            proximal_mu=request.proximal_mu,
            on_step=lambda *_: silo.check_deadline(),
        )
    exchanged = {name: tensor for name, tensor in unet.state_dict().items() if name in request.arrays}
    model.keep(request.server_round)
    return exchanged, losses


def _train_round_privately(
    request: TrainRequest, unet: UNet2DModel, images: EncodedImages, labels: torch.Tensor, silo: SiloContext
) -> None:
    config, told = silo.config, told_number(silo, request.spec)
    check_delta(config, told)
    if request.first_step + request.steps > config.train_steps:
        raise UserError(
            f"{request.steps} steps after {request.first_step}: the noise is for dp-steps = {config.train_steps} in all"
        )
    if not request.steps:
        return
    training, kept = private_training(config, told), KeptRound(silo.state, question_of(request, unet, silo))
    with silo.explained_state():
        if (weights := kept.weights()) is not None:
            # Asked again: a second answer, with other noise, would tell more.
            unet.load_state_dict(weights)
            return
        silo.before_private_steps(request.spec)(replace(training.mechanism, steps=request.steps))
    state = TrainingState(unet, config.recipe, secret_generator(), config.train_steps, request.first_step)
    train_privately(
        state,
        images,
        labels,
        training,
        request.steps,
        on_step=lambda _: silo.check_deadline(),
        proximal_mu=request.proximal_mu,
    )
    with silo.explained_state():
        kept.keep(unet.state_dict())


def upload(request: UploadRequest, silo: SiloContext) -> UploadAnswer:
    """Return the weights of the silo's own model."""
    weights = _own_network(silo).state_dict()
    return UploadAnswer(
        arrays=transport.encode_tensors(weights, silo.config.exchange.wire_dtype),
        num_examples=told_number(silo, request.spec),
    )


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


def _check_question(request: EpsilonRequest, spec: ImageSpec | None, silo: SiloContext) -> None:
    if spec is not None and (found := tuple(request.samples.shape[1:])) != (own := codec_of(silo.config, spec).shape):
        raise UserError(f"samples of shape {found}: the run's networks see {own}")
    count = silo.config.recipe.num_train_timesteps
    asked = request.timesteps if request.timesteps is not None else torch.tensor([request.timestep])
    if len(asked) and (highest := int(asked.max())) >= count:
        raise UserError(f"timestep {highest}: must be 0 to {count - 1}, num-train-timesteps = {count}")
    pretrained = pretrained_model(silo)
    classes = len(pretrained.serves) if pretrained else num_classes(_own_network(silo))
    if len(request.labels) and (highest := int(request.labels.max())) >= classes:
        raise UserError(f"label {highest} with {classes} classes")


def _refuse_rare_classes(labels: torch.Tensor, spec: ImageSpec, silo: SiloContext) -> None:
    """Refuse questions about classes of few images, by the counts that are told: these answers tell nothing else."""
    if silo.simulated:
        return
    with silo.explained_state():
        rare = silo.released(spec).rare(spec.classes).intersection(labels.tolist())
    if rare:
        silo.policy.refuse("least_class_images", f"class index {min(rare)} counts as absent here")


def _federated_model(silo: SiloContext, spec: ImageSpec, received: Arrays, run_token: str | None) -> FederatedModel:
    return FederatedModel(initial_unet(silo.config, spec), transport.decode_tensors(received), silo.state, run_token)


def _own_predictor(silo: SiloContext) -> PredictNoise:
    if (pretrained := pretrained_model(silo)) is not None:
        return pretrained.predict
    return _predictors.get(silo.run_and_node, lambda: _trained_predictor(silo))


def _trained_predictor(silo: SiloContext) -> PredictNoise:
    unet = _own_network(silo)
    noted = silo.noted(LOCAL_MODEL)
    assert noted is not None  # or there were no network
    return noise_predictor(unet, silo.config.recipe, codec_of(silo.config, noted_spec(noted)).bound)


def _own_network(silo: SiloContext) -> Denoiser:
    if (pretrained := uploadable_network(silo)) is not None:
        return pretrained
    noted = silo.noted(LOCAL_MODEL)
    if noted is None:
        raise UserError("this silo has no trained model: 'query.prepare' failed or never came")
    folder, spec = Path(str(noted["path"])), noted_spec(noted)
    return _networks.get(silo.run_and_node, lambda: load_own_network(folder, silo.config, spec))
