"""A silo's check of its own model, in runs whose server sees sums only and can screen nobody."""

from __future__ import annotations

import logging

import torch

from clients.context import SiloContext
from clients.models.pretrained_model import known_images, pretrained_model
from fedsynth.diffusion import codec_of, make_scheduler
from fedsynth.diffusion.noise_levels import timestep_at
from fedsynth.diffusion.sampling import PredictNoise
from fedsynth.errors import UserError
from fedsynth.messages import PrepareAnswer
from fedsynth.mixture.screening import LEVELS
from fedsynth.mixture.self_check import fault_of_own
from fedsynth.seeding import make_generator
from fedsynth.spec import ImageSpec

logger = logging.getLogger("fedsynth")

SAMPLES_PER_CLASS = 8
"""Samples of every class that the silo says it holds, where no image may be looked at."""


def check_own_model(predict: PredictNoise, told: PrepareAnswer, spec: ImageSpec, silo: SiloContext) -> None:
    """Refuse to take part with a model whose answers would spoil a sum in which nobody can find them.

    The model is asked about noised copies of 32 held-out images of the silo, or training images where none are held
    out. In a private run it is asked about images that its own answers imply, from noise on, as calibration does with
    those of all silos: the outcome is told, and may depend on the silo's images through the model alone.

    Args:
        predict: the model's noise predictions.
        told: what the server is told that the silo holds.
        spec: format of the images.
        silo: whose model it is.

    Raises:
        UserError: an answer misses a bound of :func:`fedsynth.mixture.self_check.fault_of_own`. By how much, the silo's
            log says alone.
    """
    config, codec = silo.config, codec_of(silo.config, spec)
    generator = make_generator(config.run.seed, "self-check", silo.name)
    alphas_bar = make_scheduler(config.recipe).alphas_cumprod
    if config.private:
        held = torch.tensor([label for label, count in enumerate(told.label_counts) if count])
        labels = held.repeat_interleave(SAMPLES_PER_CLASS)
        if not len(labels):
            return
        clean = torch.zeros((len(labels), *codec.shape))
    else:
        pretrained = pretrained_model(silo)
        serves = None if pretrained is None else pretrained.serves
        clean, labels = known_images(silo.images(spec), codec, generator, serves)
    for level in LEVELS:
        timestep = timestep_at(alphas_bar, level)
        alpha_bar = float(alphas_bar[timestep])
        noise = torch.randn(clean.shape, generator=generator)
        x_t = alpha_bar**0.5 * clean + (1 - alpha_bar) ** 0.5 * noise
        eps = predict(x_t, timestep, labels)
        if fault := fault_of_own(eps, x_t, alpha_bar, codec.bound, None if config.private else noise):
            logger.warning("%s: the own model fails its check at t = %d: %s", silo.name, timestep, fault)
            raise UserError(
                f"the own model fails its check at t = {timestep}, and would spoil the set unseen: train it for longer,"
                " or bring a better one; the silo's log says more"
            )
        if config.private:
            clean = ((x_t - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5).clamp(-codec.bound, codec.bound)
