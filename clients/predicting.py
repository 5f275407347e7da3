"""What a silo's model is asked for: noise predictions, sums of them, images, and its weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from clients.context import SiloContext
from clients.few_labels import told_pseudo_labels
from clients.models.pretrained_model import PRETRAINED_MODEL, noted_spec, pretrained_model
from clients.own_model import LOCAL_MODEL, own_network, own_predictor
from clients.summing import SumQuestion
from clients.told_counts import told_counts, told_number
from clients.training import federated_model
from fedsynth.diffusion import codec_of, draw_initial_noise, make_scheduler, noise_predictor, pick_device
from fedsynth.diffusion import sample as draw
from fedsynth.diffusion.denoiser import num_classes
from fedsynth.errors import UserError
from fedsynth.messages import (
    EpsilonAnswer,
    EpsilonRequest,
    MaskedAnswer,
    MaskedRequest,
    SampleAnswer,
    SampleRequest,
    UploadAnswer,
    UploadRequest,
    transport,
)
from fedsynth.privacy.sums.fixed_point import to_fixed
from fedsynth.privacy.sums.noise import noise_step, weights_of_samples
from fedsynth.seeding import make_generator
from fedsynth.spec import ImageSpec


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
    sign = _signer(request, spec, silo)
    predict = own_predictor(silo)
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
    answer = EpsilonAnswer(epsilon=predicted, num_examples=len(predicted), wire_dtype=dtype)
    return answer if sign is None else sign(answer)


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
    size = request.set_size or config.sampling.num_samples
    noise = draw_initial_noise(config.run.seed, size, codec.shape)[request.numbers]
    generator = make_generator(config.run.seed, "sampling", silo.name)
    scheduler = make_scheduler(recipe, config.sampling.sampling_steps, request.sampler, codec.bound)
    if request.weights is None:
        predict = own_predictor(silo)
    else:
        model = federated_model(silo, request.spec, transport.decode_tensors(request.weights), request.run_token)
        unet = model.after(request.server_round or 0).to(pick_device(config.run.device))
        predict = noise_predictor(unet, recipe, codec.bound)
    drawn = draw(predict, scheduler, noise, request.labels, generator, on_step=lambda _: silo.check_deadline())
    images = torch.from_numpy(codec.decode(drawn))
    return SampleAnswer(images=images, num_examples=len(images))


def upload(request: UploadRequest, silo: SiloContext) -> UploadAnswer:
    """Return the weights of the silo's own model."""
    weights = own_network(silo).state_dict()
    return UploadAnswer(
        arrays=transport.encode_tensors(weights, silo.config.exchange.wire_dtype),
        num_examples=told_number(silo, request.spec),
    )


def _signer(
    request: EpsilonRequest, spec: ImageSpec | None, silo: SiloContext
) -> Callable[[EpsilonAnswer], EpsilonAnswer] | None:
    """Return what signs an answer, before it is computed; None where the server aggregates."""
    if not silo.config.replicated:
        return None
    from clients import composing  # only here: most runs need none of its signatures

    return composing.signer(request, spec, silo)


def _check_question(request: EpsilonRequest, spec: ImageSpec | None, silo: SiloContext) -> None:
    if spec is not None and (found := tuple(request.samples.shape[1:])) != (own := codec_of(silo.config, spec).shape):
        raise UserError(f"samples of shape {found}: the run's networks see {own}")
    count = silo.config.recipe.num_train_timesteps
    asked = request.timesteps if request.timesteps is not None else torch.tensor([request.timestep])
    if len(asked) and (highest := int(asked.max())) >= count:
        raise UserError(f"timestep {highest}: must be 0 to {count - 1}, num-train-timesteps = {count}")
    pretrained = pretrained_model(silo)
    classes = len(pretrained.serves) if pretrained else num_classes(own_network(silo))
    if len(request.labels) and (highest := int(request.labels.max())) >= classes:
        raise UserError(f"label {highest} with {classes} classes")


def _refuse_rare_classes(labels: torch.Tensor, spec: ImageSpec, silo: SiloContext) -> None:
    """Refuse questions about classes of few images, by the counts that are told: these answers tell nothing else."""
    if silo.simulated:
        return
    with silo.explained_state():
        rare = silo.released(spec).rare(spec.classes)
    if (pseudo := told_pseudo_labels(silo)) is not None:
        few = pseudo < silo.policy.least_class_images
        rare = set(np.flatnonzero((told_counts(silo, spec) == 0) & few).tolist())
    if rare := rare.intersection(labels.tolist()):
        silo.policy.refuse("least_class_images", f"class index {min(rare)} counts as absent here")
