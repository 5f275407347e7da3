"""Training of a denoising network by DP-SGD: the weights of a step are private as to one training image more or less.

A step's sample, its noise and its clipping are the mechanism (Abadi et al. 2016, arXiv 1607.00133). Optimiser, learning
rate and weight average only see what comes out of it.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch

from fedsynth.config import OWN_MODELS, RunConfig
from fedsynth.config.methods import AveragingSettings
from fedsynth.diffusion import EncodedImages, TrainingState, make_scheduler
from fedsynth.diffusion.codec import Images
from fedsynth.diffusion.recipe import denoising_loss
from fedsynth.errors import UserError
from fedsynth.privacy.accounting import Mechanism, noise_multiplier_for
from fedsynth.privacy.gradients import MEMORY_BYTES, clipped_gradient_sum, gaussian_noise


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
    own, rounds = config.run.strategy in OWN_MODELS, isinstance(config.settings, AveragingSettings)
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
        state.set_learning_rate()
        state.optimizer.step()
        state.ema.step(state.unet.parameters())
        state.losses.append(math.nan)
        if on_step is not None:
            on_step(state.steps)
        if deadline is not None and time.monotonic() >= deadline:
            break


def _noised_sum(state: TrainingState, images: Images, labels: torch.Tensor, config: DPSGD) -> dict[str, torch.Tensor]:
    generator, device = state.generator, next(state.unet.parameters()).device
    drawn = torch.rand(len(images), generator=generator, dtype=torch.float64) < config.mechanism.sampling_rate
    batch = _draws(images, labels, drawn.nonzero().squeeze(1), config.multiplicity, state)
    alphas = make_scheduler(state.recipe)
    alpha_bars = alphas.alphas_cumprod.to(device)

    def loss(forward: Callable[..., torch.Tensor], *record: torch.Tensor) -> torch.Tensor:
        clean, noise, t, classes = record
        noisy = alphas.add_noise(clean, noise, t)
        predicted = forward(noisy, t, class_labels=classes).sample  # type: ignore[attr-defined]
        return denoising_loss(predicted, clean, noise, alpha_bars[t], state.recipe).mean()

    records = tuple(part.to(device) for part in batch)
    total = clipped_gradient_sum(state.unet, loss, records, config.clip, config.memory_bytes)
    noise = gaussian_noise(total, config.mechanism.noise_multiplier * config.clip, generator)
    return {name: value + noise[name] for name, value in total.items()}


def _draws(
    images: Images, labels: torch.Tensor, rows: torch.Tensor, multiplicity: int, state: TrainingState
) -> tuple[torch.Tensor, ...]:
    """Return (clean, noise, timestep, class) of the rows, each (n, M, ...); the levels of one are spread over all."""
    generator, levels = state.generator, state.recipe.num_train_timesteps
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
