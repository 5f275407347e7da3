"""What a silo does in a round of averaging: it trains on its images, or helps to combine the updates of all."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from diffusers import UNet2DModel

from clients.context import SiloContext
from clients.few_labels import number_told, train_federated_classifier, training_images
from clients.kept_round import KeptRound, question_of
from clients.models.federated_model import FederatedModel
from clients.summing import SumQuestion
from clients.told_counts import told_number
from fedsynth.config.methods import DfDSettings
from fedsynth.diffusion import (
    PARTS,
    EncodedImages,
    TrainingState,
    initial_unet,
    part_of,
    pick_device,
    select_parts,
)
from fedsynth.diffusion import train as train_network
from fedsynth.diffusion.adapters import AdaptedUNet
from fedsynth.errors import UserError
from fedsynth.messages import (
    AggregateAnswer,
    AggregateRequest,
    MaskedAnswer,
    MaskedTrainRequest,
    TrainAnswer,
    TrainRequest,
    transport,
)
from fedsynth.messages.train import CLASSIFIER
from fedsynth.messages.transport import Arrays
from fedsynth.privacy.dp_training import check_delta, private_training, secret_generator, train_privately
from fedsynth.privacy.sums.updates import check_total_weights, encode_updates
from fedsynth.seeding import make_generator
from fedsynth.spec import ImageSpec

logger = logging.getLogger("fedsynth")


def train(request: TrainRequest, silo: SiloContext) -> TrainAnswer:
    """Continue from the received weights on the silo's images, with a fresh optimiser.

    Tensors of the network that the request leaves out are personal: the silo keeps them on its disk, under the run's
    token, from one round that it takes part in to the next, and no answer holds them, whatever parts it asks for.
    """
    if request.model == CLASSIFIER:
        return train_federated_classifier(request, silo)
    parts = list(PARTS if request.report_parts is None else request.report_parts)
    select_parts({}, parts)  # an unknown part is refused before any work
    sign = _signer(request, silo)
    exchanged, losses = train_round(request, silo)
    arrays = transport.encode_tensors(select_parts(exchanged, parts), silo.config.exchange.wire_dtype)
    told = told_number(silo, request.spec) if request.images is None else number_told(request, silo)
    return TrainAnswer(
        arrays=arrays,
        num_examples=told,
        statement=None if sign is None else sign(arrays, told),
        loss=sum(losses) / len(losses) if losses and silo.policy.tell_train_loss else None,
    )


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
    trained, _ = train_round(request.training(), silo)
    updates = [trained[name].double().cpu() - received[name].double() for name in names]
    if clamped := sum(int((u.abs() > size).sum()) for u, size in zip(updates, request.ranges, strict=True)):
        logger.warning("round %d: %d weights changed by more than can be summed", request.server_round, clamped)
    return question.answer(encode_updates(updates, weights, request.ranges))


def aggregate(request: AggregateRequest, silo: SiloContext) -> AggregateAnswer:
    """Combine the updates of all silos, and sign what comes of it.

    See :func:`clients.replicating.aggregate`, and :func:`clients.composing.compose_predictions`.
    """
    from clients import composing, replicating  # only here: most runs need none of its signatures

    composes = isinstance(silo.config.settings, DfDSettings)
    return composing.compose_predictions(request, silo) if composes else replicating.aggregate(request, silo)


def _signer(request: TrainRequest, silo: SiloContext) -> Callable[[Arrays, int], str] | None:
    """Return what signs the silo's update, before it trains; None where the server aggregates."""
    if not silo.config.replicated:
        return None
    from clients import replicating  # only here: most runs need none of its signatures

    replica, terms = replicating.replica_of(request, silo)
    return lambda arrays, images: replica.signed_update(terms, arrays, images)


def train_round(
    request: TrainRequest, silo: SiloContext, received: dict[str, torch.Tensor] | None = None
) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Return the exchanged weights after a round's steps, and the steps' losses, none of private ones.

    Args:
        request: the round.
        silo: whose images are trained on.
        received: the exchanged weights, emptied; None: those of the request.
    """
    config = silo.config
    if received is None:
        received = transport.decode_tensors(request.arrays)
    names = set(received)
    images = silo.images(request.spec).train if request.images is None else training_images(request, silo).labelled
    model = federated_model(silo, request.spec, received, request.run_token)
    received.clear()
    unet = model.before(request.server_round, request.has_trained).to(pick_device(config.run.device))
    if isinstance(unet, AdaptedUNet) and unet.adapters.stacked:
        unet.fold(request.server_round)
    labels = torch.from_numpy(images.labels)
    losses: list[float] = []
    with silo.keeping_latents(request.spec) as codec:
        encoded = EncodedImages(images.images, codec, config.training.augmentations())
        if config.private:
            _train_round_privately(request, unet, encoded, labels, silo)
        else:
            generator = make_generator(config.run.seed, "federated-training", silo.name, request.server_round)
            losses = train_network(
                TrainingState(unet, config.recipe, generator, config.train_steps, request.first_step),
                encoded,
                labels,
                config.training,
                request.steps,
                proximal_mu=request.proximal_mu,
                on_step=lambda *_: silo.check_deadline(),
            )
    exchanged = {name: tensor for name, tensor in unet.state_dict().items() if name in names}
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


def federated_model(
    silo: SiloContext, spec: ImageSpec, received: Mapping[str, torch.Tensor], run_token: str | None
) -> FederatedModel:
    """Return the run's network with the weights received, and where the silo keeps what is its own of it."""
    return FederatedModel(initial_unet(silo.config, spec), received, silo.state, run_token)
