"""Training of a denoising network by DP-SGD: the weights of a step are private as to one training image more or less.

A step's sample, its noise and its clipping are the mechanism (Abadi et al. 2016, arXiv 1607.00133). Optimiser, learning
rate and weight average only see what comes out of it.
"""

from __future__ import annotations

import math
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from diffusers import UNet2DModel
from numpy.typing import NDArray

from fedsynth.config import OWN_MODELS, Recipe, RunConfig
from fedsynth.config.methods import AveragingSettings, DPSumSettings
from fedsynth.diffusion import EncodedImages, TrainingState, make_scheduler
from fedsynth.diffusion.codec import Images
from fedsynth.diffusion.recipe import denoising_loss
from fedsynth.errors import UserError
from fedsynth.privacy.accounting import Mechanism, noise_multiplier_for
from fedsynth.privacy.discrete_gaussian import Bits, discrete_gaussian, sampled_rows
from fedsynth.privacy.gradients import (
    MEMORY_BYTES,
    RecordLoss,
    clipped_gradient_sum,
    clipped_whole_sum,
    gaussian_noise,
    whole_scale,
)
from fedsynth.privacy.summed_noise import SummedNoise


@dataclass(frozen=True)
class DPSGD:
    """What one step does.

    Attributes:
        mechanism: its noise multiplier σ and sampling rate q; ``steps`` of a whole training.
        clip: C, norm of an image's gradient at most.
        multiplicity: M, draws of noise level, noise and variant that an image's gradient is the mean of.
        denominator: what the noised sum is divided by, q times the number of images as others are told it: the exact
            number would tell of one image. How near it is hardly matters, since Adam divides by the gradient's scale.
        memory_bytes: room for the images that are worked on at a time.
    """

    mechanism: Mechanism
    clip: float
    multiplicity: int
    denominator: float
    memory_bytes: int = MEMORY_BYTES


def private_training(config: RunConfig, told_images: int) -> DPSGD:
    """Return how a run trains privately.

    Args:
        config: the run's; with ``dp-epsilon``.
        told_images: number of images as others are told it.
    """
    keys = config.privacy
    denominator = max(1.0, keys.dp_sampling_rate * told_images)
    return DPSGD(mechanism_of(config), keys.dp_clip, keys.dp_multiplicity, denominator)


def mechanism_of(config: RunConfig) -> Mechanism:
    """Return the mechanism of all training of a run at one silo: of its own model, and of its rounds together."""
    keys, steps = config.privacy, private_steps(config)
    sigma = _noise_multiplier(keys.dp_epsilon, keys.dp_delta, keys.dp_sampling_rate, steps)
    return Mechanism(sigma, keys.dp_sampling_rate, steps)


def private_steps(config: RunConfig) -> int:
    """Return the steps that a run trains on the images of one silo, and that its ``dp-epsilon`` is for."""
    own, rounds = config.run.strategy in OWN_MODELS, isinstance(config.settings, AveragingSettings | DPSumSettings)
    return config.privacy.dp_steps * (own + rounds)


def check_delta(config: RunConfig, told_images: int) -> None:
    """Refuse a δ with which a mechanism that shows one image in 1/δ whole would be private.

    Args:
        config: of a private run or training.
        told_images: training images as others are told their number.

    Raises:
        UserError: δ is above 1 / images.
    """
    delta = config.privacy.dp_delta
    if delta * told_images > 1:
        most = f"{1 / delta:.0f}"
        raise UserError(f"dp-delta = {delta:g}: must be <= 1 / images of a silo, and this one has more than {most}")


_noise_multiplier = lru_cache(maxsize=8)(noise_multiplier_for)


def secret_generator() -> torch.Generator:
    """Return a generator that no seed of a run leads to: noise that somebody can draw again is taken off again."""
    return torch.Generator().manual_seed(secrets.randbits(63))


def train_privately(
    state: TrainingState,
    images: Images,
    labels: torch.Tensor,
    config: DPSGD,
    until_step: int,
    deadline: float | None = None,
    on_step: Callable[[int], None] | None = None,
    proximal_mu: float = 0.0,
) -> None:
    """Train as :func:`fedsynth.diffusion.train` does, each step with differential privacy; losses are NaN.

    The result does not depend on how a training is cut into calls, unless there is a proximal term. Whoever calls has
    accounted for the steps before.

    Args:
        state: network and optimiser, advanced in place; its generator must be secret.
        images: training images; in a step each takes part with probability q, independently.
        labels: their classes (n,).
        config: of a step.
        until_step: total number of steps after this call.
        deadline: ``time.monotonic()`` after which no further step starts; at least one step is made.
        on_step: called with the steps done after each step.
        proximal_mu: μ >= 0 of FedProx's term (μ/2)·‖w - w_t‖², which is of weights alone and gets no noise.
    """
    start = [parameter.detach().clone() for parameter in state.unet.parameters()] if proximal_mu else []
    state.unet.train()
    while state.steps < until_step:
        _set_gradients(state, _noised_sum(state, images, labels, config), config.denominator)
        for parameter, before in zip(state.unet.parameters(), start, strict=False):
            assert parameter.grad is not None
            parameter.grad.add_(parameter.detach() - before, alpha=proximal_mu)
        _make_step(state)
        if on_step is not None:
            on_step(state.steps)
        if deadline is not None and time.monotonic() >= deadline:
            break


@dataclass(frozen=True)
class SummedStep:
    """What one silo does for one step of a model that all silos train together.

    Attributes:
        noise: what it adds, and in which whole numbers.
        sampling_rate: q, the same at every silo.
        clip: C, norm of an image's gradient at most.
        multiplicity: M, see :class:`DPSGD`.
        memory_bytes: room for the images that are worked on at a time.
    """

    noise: SummedNoise
    sampling_rate: float
    clip: float
    multiplicity: int
    memory_bytes: int = MEMORY_BYTES


def noised_whole_sum(
    unet: UNet2DModel,
    recipe: Recipe,
    images: Images,
    labels: torch.Tensor,
    step: SummedStep,
    bits: Bits = os.urandom,
) -> NDArray[np.int64]:
    """Return a silo's answer: the sum of its images' clipped gradients in whole numbers, and its share of the noise.

    Only a sum over silos is private, and whoever calls has accounted for it before.

    Args:
        unet: the network as all silos have it.
        recipe: how it is trained.
        images: training images; each takes part with probability q, independently.
        labels: their classes (n,).
        step: how.
        bits: secret randomness.

    Returns:
        Whole numbers (number of weights,), the parameters one after the other.
    """
    rows = torch.from_numpy(sampled_rows(len(images), step.sampling_rate, bits))
    generator = torch.Generator().manual_seed(int.from_bytes(bits(7)))
    batch = _draws(images, labels, rows, step.multiplicity, recipe, generator)
    device = next(unet.parameters()).device
    records = tuple(part.to(device) for part in batch)
    unet.train()
    loss = _record_loss(recipe, device)
    total = clipped_whole_sum(unet, loss, records, step.clip, step.noise.norm, step.memory_bytes)
    return total.numpy() + discrete_gaussian(step.noise.share, len(total), bits)


def summed_training_step(state: TrainingState, total: torch.Tensor, clip: float, norm: int, denominator: float) -> None:
    """Make a step of the optimiser with what the silos' answers add up to.

    Args:
        state: network, optimiser and weight average, advanced in place.
        total: sum of the answers, whole numbers (number of weights,).
        clip, norm: C and Δ of the answers.
        denominator: images that a sum is expected to be over, q times those that the silos told.
    """
    scale = whole_scale(clip, norm, len(total)) * denominator
    parameters = list(state.unet.parameters())
    parts = total.split([value.numel() for value in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = (part.double() / scale).float().view_as(parameter).to(parameter.device)
    _make_step(state)


def _make_step(state: TrainingState) -> None:
    state.set_learning_rate()
    state.optimizer.step()
    state.ema.step(state.unet.parameters())
    state.losses.append(math.nan)


def _noised_sum(state: TrainingState, images: Images, labels: torch.Tensor, config: DPSGD) -> dict[str, torch.Tensor]:
    generator, device = state.generator, next(state.unet.parameters()).device
    drawn = torch.rand(len(images), generator=generator, dtype=torch.float64) < config.mechanism.sampling_rate
    batch = _draws(images, labels, drawn.nonzero().squeeze(1), config.multiplicity, state.recipe, generator)
    records = tuple(part.to(device) for part in batch)
    loss = _record_loss(state.recipe, device)
    total = clipped_gradient_sum(state.unet, loss, records, config.clip, config.memory_bytes)
    noise = gaussian_noise(total, config.mechanism.noise_multiplier * config.clip, generator)
    return {name: value + noise[name] for name, value in total.items()}


def _record_loss(recipe: Recipe, device: torch.device) -> RecordLoss:
    """Return the loss of an image, a mean over its draws."""
    alphas = make_scheduler(recipe)
    alpha_bars = alphas.alphas_cumprod.to(device)

    def loss(forward: Callable[..., torch.Tensor], *record: torch.Tensor) -> torch.Tensor:
        clean, noise, t, classes = record
        noisy = alphas.add_noise(clean, noise, t)
        predicted = forward(noisy, t, class_labels=classes).sample  # type: ignore[attr-defined]
        return denoising_loss(predicted, clean, noise, alpha_bars[t], recipe).mean()

    return loss


def _draws(
    images: Images,
    labels: torch.Tensor,
    rows: torch.Tensor,
    multiplicity: int,
    recipe: Recipe,
    generator: torch.Generator,
) -> tuple[torch.Tensor, ...]:
    """Return (clean, noise, timestep, class) of the rows, each (n, M, ...); the levels of one are spread over all."""
    levels = recipe.num_train_timesteps
    repeated = rows.repeat_interleave(multiplicity)
    clean = images.draw(repeated, generator) if isinstance(images, EncodedImages) else images[repeated]
    clean = clean.unflatten(0, (len(rows), multiplicity))
    places = torch.arange(multiplicity) + torch.rand(len(rows), multiplicity, generator=generator, dtype=torch.float64)
    t = (places / multiplicity * levels).long().clamp(max=levels - 1)
    noise = torch.randn(clean.shape, generator=generator)
    return clean, noise, t, labels[rows][:, None].expand(-1, multiplicity)


def _set_gradients(state: TrainingState, total: dict[str, torch.Tensor], denominator: float) -> None:
    for name, parameter in state.unet.named_parameters():
        parameter.grad = total[name] / denominator
