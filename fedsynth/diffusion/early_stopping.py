"""Early stopping: training ends when the loss on held-out images no longer falls, and its best weights are kept.

A network that has seen few images often enough reproduces them. Its loss on images it was never trained on rises by
then (Prechelt 1998, Early stopping, but when?).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import torch
from diffusers import UNet2DModel

from fedsynth.config import Recipe, Training
from fedsynth.diffusion.codec import Images
from fedsynth.diffusion.recipe import denoising_loss
from fedsynth.diffusion.samplers import make_scheduler
from fedsynth.diffusion.training import TrainingState, train

MIN_HELD_OUT = 4
"""With fewer held-out images there is no early stopping. Four find the best weights of a network that has 36 digits to
learn from within 3 % of the lowest loss on all other digits, which rises by 29 % in 900 steps."""

# As many forward passes as 8 batches of 32, the cost of about 3 training steps.
PAIRS = 256
BATCH_SIZE = 64
# A check every 20th of the budget, since a long training is one whose loss falls slowly; but not more often than every
# 50 steps, where checks would cost more than a twentieth of the training.
CHECKS = 20
MIN_INTERVAL = 50
PATIENCE = 4
MIN_DELTA = 1e-3


class HeldOutLoss:
    """Mean training loss over 256 fixed pairs of a noise level and noise, the same for every network.

    The levels are stratified: one in every 256th of 0 to T - 1, and each image has its levels spread over all of them.

    Args:
        images: never trained on, n >= 1. Of more than 256, as many at random take part.
        labels: their classes (n,).
        recipe: noise schedule, prediction and weighting.
        generator: decides the pairs.
    """

    def __init__(self, images: Images, labels: torch.Tensor, recipe: Recipe, generator: torch.Generator) -> None:
        rounds = -(-PAIRS // len(images))
        rows = torch.cat([torch.randperm(len(images), generator=generator) for _ in range(rounds)])[:PAIRS]
        self._recipe = recipe
        self._clean = images[rows]
        levels = torch.arange(PAIRS) + torch.rand(PAIRS, generator=generator, dtype=torch.float64)
        self._t = (levels / PAIRS * recipe.num_train_timesteps).long().clamp(max=recipe.num_train_timesteps - 1)
        self._noise = torch.randn(self._clean.shape, generator=generator)
        scheduler = make_scheduler(recipe)
        self._alpha_bar = scheduler.alphas_cumprod[self._t]
        self._noisy = scheduler.add_noise(self._clean, self._noise, self._t)
        self._labels = labels[rows]

    @torch.inference_mode()
    def __call__(self, unet: UNet2DModel) -> float:
        """Return the loss of a network in evaluation mode, in which it is left."""
        device = next(unet.parameters()).device
        unet.eval()
        total = 0.0
        for rows in torch.arange(PAIRS).split(BATCH_SIZE):
            x, t, labels = (part[rows].to(device) for part in (self._noisy, self._t, self._labels))
            predicted = unet(x, t, class_labels=labels).sample.cpu().double()
            clean, noise, alpha_bar = (part[rows].double() for part in (self._clean, self._noise, self._alpha_bar))
            total += float(denoising_loss(predicted, clean, noise, alpha_bar, self._recipe).sum())
        return total / PAIRS


def check_steps(budget: int) -> list[int]:
    """Return the steps after which the held-out loss is measured: regularly, and at the end of ``budget``."""
    interval = max(MIN_INTERVAL, budget // CHECKS)
    return [*range(interval, budget, interval), budget]


def out_of_patience(losses: Sequence[float], patience: int = PATIENCE, min_delta: float = MIN_DELTA) -> bool:
    """Whether ``patience`` consecutive ``losses`` were no better than what came before by ``min_delta``.

    Progress is a loss below (1 - ``min_delta``) times the one at the last progress, so that small steps add up.
    """
    reference = math.inf
    waited = 0
    for loss in losses:
        waited += 1
        if loss < reference * (1 - min_delta):
            reference = loss
            waited = 0
        if waited >= patience:
            return True
    return False


def train_early_stopping(
    state: TrainingState,
    held_out_loss: Callable[[UNet2DModel], float],
    images: Images,
    labels: torch.Tensor,
    config: Training,
    budget: int,
    deadline: float | None = None,
) -> bool:
    """Train up to ``budget`` steps as :func:`train` does, but end after 4 checks without progress of the held-out loss.

    The weight average is what is checked, and ``state`` keeps the best one. The result does not depend on how a
    training is cut into calls: checks come after fixed steps, and what they found is part of ``state``.

    Args:
        state: network and optimiser, advanced in place.
        held_out_loss: loss of a network on images that are not among ``images``, as :class:`HeldOutLoss`.
        images, labels, config, deadline: as in :func:`train`.
        budget: number of steps after which training ends in any case.

    Returns:
        Whether training has ended; False if only this call has.
    """
    while not _ended(state, budget):
        check = next(step for step in check_steps(budget) if step > state.steps)
        train(state, images, labels, config, check, deadline)
        if state.steps == check:
            state.note_held_out_loss(held_out_loss)
        if deadline is not None and time.monotonic() >= deadline:
            break
    return _ended(state, budget)


def _ended(state: TrainingState, budget: int) -> bool:
    return state.steps >= budget or out_of_patience(state.held_out_losses)
