"""Sampling a model that lives on the server."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import numpy as np
import torch
from diffusers import UNet2DModel
from numpy.typing import NDArray

from fedsynth.diffusion import (
    TrainingState,
    codec_of,
    draw_initial_noise,
    initial_unet,
    make_scheduler,
    noise_predictor,
    pick_device,
    sample,
)
from fedsynth.errors import RunError
from fedsynth.progress import Progress
from fedsynth.seeding import make_generator
from strategies.base import Outcome, Task

logger = logging.getLogger("fedsynth")


def draw_from_model(task: Task, weights: Mapping[str, torch.Tensor]) -> Outcome:
    """Draw the synthetic set from one model, from the noise that every method of the seed starts from."""
    seed = task.config.run.seed
    unet = initial_unet(task.config, task.spec)
    unet.load_state_dict(dict(weights))
    noise = draw_initial_noise(seed, len(task.labels), codec_of(task.config, task.spec).shape)
    progress = Progress("sampling: level", task.config.sampling.sampling_steps, logger.info)
    generator = make_generator(seed, "sampling")
    return Outcome(draw_images(task, unet, noise, task.labels, generator, progress.update), task.labels.numpy(), unet)


def preview_of_model(task: Task, weights: Mapping[str, torch.Tensor], rows: torch.Tensor) -> NDArray[np.uint8]:
    """Draw some images of the set from a model on its way, uint8 (n, H, W, C); ``rows`` are their places, (n,)."""
    seed = task.config.run.seed
    unet = initial_unet(task.config, task.spec)
    unet.load_state_dict(dict(weights))
    noise = draw_initial_noise(seed, len(task.labels), codec_of(task.config, task.spec).shape)
    return draw_images(task, unet, noise[rows], task.labels[rows], make_generator(seed, "preview"))


def new_training(task: Task, purpose: str, steps: int) -> TrainingState:
    """Return a training of ``steps`` on the server at its start; ``purpose`` decides batches and noise."""
    unet = initial_unet(task.config, task.spec).to(pick_device(task.config.run.device))
    return TrainingState(unet, task.config.recipe, make_generator(task.config.run.seed, purpose), steps)


def draw_images(
    task: Task,
    unet: UNet2DModel,
    noise: torch.Tensor,
    labels: torch.Tensor,
    generator: torch.Generator,
    on_step: Callable[[int], None] | None = None,
    sampler: str = "",
) -> NDArray[np.uint8]:
    """Draw uint8 images (n, H, W, C) as the run's settings say; arguments as of :func:`fedsynth.diffusion.sample`.

    ``sampler`` takes the place of the run's.

    Raises:
        RunError: the model draws no images, but numbers that are not finite.
    """
    codec, recipe = codec_of(task.config, task.spec), task.config.recipe
    steps = task.config.sampling.sampling_steps
    scheduler = make_scheduler(recipe, steps, sampler or task.sampler, codec.bound)
    predict = noise_predictor(unet.to(pick_device(task.config.run.device)), recipe, codec.bound)
    drawn = sample(predict, scheduler, noise, labels, generator, on_step)
    if bad := int((~drawn.isfinite()).flatten(1).any(1).sum()):
        raise RunError(f"{bad} of {len(drawn)} images drawn from the model are not finite: its training has diverged")
    return codec.decode(drawn)
