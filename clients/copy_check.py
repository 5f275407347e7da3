"""Whether a silo's own model returns training images, measured where those images are."""

from __future__ import annotations

import logging

import numpy as np
import torch
from diffusers import UNet2DModel

from fedsynth.config import RunConfig
from fedsynth.data import Silo
from fedsynth.data.apportion import apportion
from fedsynth.diffusion import codec_of, exact_variants, make_scheduler, noise_predictor, sample
from fedsynth.errors import UserError
from fedsynth.evaluation.memorisation import Forms
from fedsynth.evaluation.memorisation import copied_share as share_of_copies
from fedsynth.seeding import make_generator
from fedsynth.spec import ImageSpec

logger = logging.getLogger("fedsynth")

NUM_SAMPLES = 64
SAMPLING_STEPS = 12
# With fewer, the distance that counts as a copy is a guess.
MIN_HELD_OUT = 8
MOST_HELD_OUT = 500
"""Of more, as many at random take part: 25 of them are the 20th part, and each is compared with all training images."""


def copied_share(
    silo: Silo, unet: UNet2DModel, spec: ImageSpec, config: RunConfig, held_out: int | None = None
) -> float | None:
    """Return the share of 64 samples that are nearer to a training image than 19 in 20 held-out images are.

    Nothing is logged here: the server warns of a large share, once. Distances are those of pixels. The 20th part is
    itself an estimate: honest models have a share of about .05 beside very many held-out images, .10 beside 15 and .14
    beside 8. Of samples that passed through an autoencoder, see :mod:`fedsynth.evaluation.memorisation`.

    Args:
        silo: the images that the network was trained on, and those held out.
        unet: network to sample, with labels in the shares of the training images.
        spec: format of the images.
        config: seed and recipe.
        held_out: number of held-out images, by which it is decided whether there is a check; None: the exact one.

    Returns:
        Share, 0 to 1; None where fewer than 8 images are held out, or they say nothing.
    """
    count = len(silo.holdout) if held_out is None else held_out
    if count < MIN_HELD_OUT:
        message = "%s: no copy check: %d images are held out, it needs %d"
        logger.info(message, silo.name, count, MIN_HELD_OUT)
        return None
    samples = _draw(silo, unet, spec, config)
    try:
        forms = Forms(exact_variants(config.training.augmentations()), codec_of(config, spec).reconstruct)
        return share_of_copies(samples, silo.train.images, _held_out(silo, config), forms)
    except UserError as error:
        logger.warning("%s: no copy check: %s", silo.name, error)
        return None


def _draw(silo: Silo, unet: UNet2DModel, spec: ImageSpec, config: RunConfig) -> np.ndarray:
    labels = torch.arange(len(spec.classes)).repeat_interleave(
        torch.from_numpy(apportion(NUM_SAMPLES, silo.train.label_counts()))
    )
    generator = make_generator(config.run.seed, "copy-check", silo.name)
    codec = codec_of(config, spec)
    noise = torch.randn((NUM_SAMPLES, *codec.shape), generator=generator)
    scheduler = make_scheduler(config.recipe, SAMPLING_STEPS, "dpmsolver++", codec.bound)
    return codec.decode(sample(noise_predictor(unet, config.recipe, codec.bound), scheduler, noise, labels, generator))


def _held_out(silo: Silo, config: RunConfig) -> np.ndarray:
    if len(silo.holdout) <= MOST_HELD_OUT:
        return silo.holdout.images
    generator = make_generator(config.run.seed, "copy-check-held-out", silo.name)
    rows = torch.randperm(len(silo.holdout), generator=generator)[:MOST_HELD_OUT]
    return silo.holdout.subset(rows.numpy()).images
