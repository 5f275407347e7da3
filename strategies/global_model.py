"""Sampling a model that lives on the server."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch

from fedsynth.diffusion import (
    draw_initial_noise,
    initial_unet,
    make_scheduler,
    noise_predictor,
    pick_device,
    sample,
    to_uint8,
)
from fedsynth.progress import Progress
from fedsynth.seeding import make_generator
from strategies.base import Outcome, Task

logger = logging.getLogger("fedsynth")


def draw_from_model(task: Task, weights: Mapping[str, torch.Tensor]) -> Outcome:
    """Draw the synthetic set from one model, from the noise that every method of the seed starts from."""
    config = task.config
    unet = initial_unet(config, task.spec)
    unet.load_state_dict(dict(weights))
    unet.to(pick_device(config.run.device))
    scheduler = make_scheduler(config.diffusion, config.sampling.sampling_steps)
    noise = draw_initial_noise(config.run.seed, len(task.labels), task.spec.shape)
    progress = Progress("sampling: level", len(scheduler.timesteps), logger.info)
    generator = make_generator(config.run.seed, "sampling")
    samples = sample(noise_predictor(unet), scheduler, noise, task.labels, generator, progress.update)
    return Outcome(to_uint8(samples), task.labels.numpy(), unet)
