"""A silo's pretrained model, used in place of one trained for the run."""

from __future__ import annotations

import logging
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import numpy as np
import torch
from diffusers import UNet2DModel
from flwr.app import ArrayRecord, ConfigRecord
from numpy.typing import NDArray

from clients.context import SiloContext
from clients.silo_cache import SiloCache
from fedsynth.config import OWN_MODELS, RunConfig
from fedsynth.data import Silo
from fedsynth.diffusion import Codec, codec_of, initial_unet, make_scheduler, pick_device
from fedsynth.diffusion.noise_levels import from_noise
from fedsynth.diffusion.pretrained import PretrainedModel, load_pretrained_model
from fedsynth.diffusion.recipe import DIFFUSERS_PREDICTION, denoising_loss
from fedsynth.errors import UserError
from fedsynth.seeding import make_generator
from fedsynth.spec import ImageSpec

logger = logging.getLogger("fedsynth")

PRETRAINED_MODEL = "pretrained-model"

LOSS_TIMESTEPS = 8
LOSS_IMAGES = 32
"""The loss is measured at so many timesteps, on at most so many images: seconds on a CPU."""

_models: SiloCache[PretrainedModel] = SiloCache()


def brings_model(silo: SiloContext) -> bool:
    """Whether the silo has a pretrained model, and the run asks for silos' own models."""
    return silo.model_path is not None and silo.config.run.strategy in OWN_MODELS


def note_pretrained_model(silo: SiloContext, spec: ImageSpec) -> PretrainedModel | None:
    """Load the model of ``model-path`` and note it in the context; None for a silo that trains its own.

    Raises:
        UserError: it cannot be used for the run.
    """
    if not brings_model(silo):
        return None
    if silo.config.model.base_model:
        raise UserError("model-path: a silo's own model in a run with a base-model is not built; remove model-path")
    held = [spec.classes[label] for label in np.unique(silo.images(spec).train.labels)]
    silo.note(PRETRAINED_MODEL, model_note(spec, {"path": str(silo.model_path), "held-classes": held}))
    return pretrained_model(silo)


def pretrained_model(silo: SiloContext) -> PretrainedModel | None:
    """Return the model noted by :func:`note_pretrained_model`, loaded once per process; None if there is none."""
    noted = silo.noted(PRETRAINED_MODEL)
    if noted is None:
        return None
    config = silo.config
    held = [str(name) for name in cast(list[str], noted["held-classes"])]

    def load() -> PretrainedModel:
        device, spec = pick_device(config.run.device), noted_spec(noted)
        return load_pretrained_model(Path(str(noted["path"])), codec_of(config, spec), config.recipe, held, device)

    return _models.get(silo.run_and_node, load)


def model_note(spec: ImageSpec, facts: dict[str, str | list[str]]) -> ConfigRecord:
    """Return what a silo notes of a model, with the format and classes that it is for."""
    return ConfigRecord(
        {**facts, "image-channels": spec.channels, "image-size": spec.size, "classes": list(spec.classes)}
    )


def noted_spec(noted: ConfigRecord | ArrayRecord) -> ImageSpec:
    """Return format and classes of a note by :func:`model_note`."""
    classes = tuple(cast(list[str], noted["classes"]))
    return ImageSpec(cast(int, noted["image-channels"]), cast(int, noted["image-size"]), classes)


def measure_loss(model: PretrainedModel, silo: Silo, config: RunConfig) -> float:
    """Return the mean loss of the run's recipe at random timesteps, one in each of equal parts of the schedule.

    Whatever the model predicts, what it says is put in the terms of the run, as if its network had been trained here.
    Over images of classes that the model knows: held-out images, or training images where none are held out. Images,
    timesteps and noise are the same every time.
    """
    generator = make_generator(config.run.seed, "brought-model-loss", silo.name)
    codec = model.codec
    images, labels = known_images(silo, codec, generator, model.serves)
    recipe, scheduler = config.recipe, make_scheduler(config.recipe)
    losses: list[float] = []
    of_silence: list[float] = []
    stretch = recipe.num_train_timesteps / LOSS_TIMESTEPS
    for number in range(LOSS_TIMESTEPS):
        t = int((number + float(torch.rand((), generator=generator))) * stretch)
        noise = torch.randn(images.shape, generator=generator)
        timesteps = torch.full((len(images),), t)
        noisy, alpha_bar = scheduler.add_noise(images, noise, timesteps), scheduler.alphas_cumprod[timesteps]
        for eps, found in ((model.predict(noisy, t, labels), losses), (torch.zeros_like(noise), of_silence)):
            predicted = from_noise(
                eps, noisy, float(alpha_bar[0]), DIFFUSERS_PREDICTION[recipe.prediction], codec.bound
            )
            found.append(float(denoising_loss(predicted, images, noise, alpha_bar, recipe).mean()))
    loss = fmean(losses)
    if loss >= fmean(of_silence):
        logger.warning("%s: model-path: loss %.3g: was the model trained on such images, in [-1, 1]?", silo.name, loss)
    return loss


def known_images(
    silo: Silo, codec: Codec, generator: torch.Generator, serves: NDArray[np.bool_] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return at most :data:`LOSS_IMAGES` images (n, C, H, W) that a model should know, at random, and their labels.

    Args:
        silo: held-out images are taken, training images where there are none.
        codec: what the model sees of them.
        generator: draws.
        serves: classes that the model knows, bool (C,); None: all.
    """
    parts = [silo.holdout, silo.train]
    if serves is not None:
        parts = [part.subset(np.flatnonzero(serves[part.labels])) for part in parts]
    known = next(part for part in parts if len(part))
    chosen = known.subset(torch.randperm(len(known), generator=generator)[:LOSS_IMAGES].numpy())
    return codec.encode(chosen.images), torch.from_numpy(chosen.labels)


def uploadable_network(silo: SiloContext) -> UNet2DModel | None:
    """Return the pretrained network if its bare weights can be averaged with the run's; None if the silo has none.

    Raises:
        UserError: another architecture, noise schedule, prediction or order of classes.
    """
    model = pretrained_model(silo)
    noted = silo.noted(PRETRAINED_MODEL)
    config = silo.config
    if model is None or noted is None:
        return None
    run = _architecture(initial_unet(config, noted_spec(noted)))
    own = _architecture(model.unet)
    differences = [key for key in run if own.get(key) != run[key]]
    if not model.native:
        differences.append("what it predicts, its noise schedule or its classes")
    if differences:
        raise UserError(
            f"model-path = '{silo.model_path}': strategy = '{config.run.strategy}' has silos upload weights, and"
            f" this model differs from the run's ({', '.join(differences)}): remove model-path to have the silo train"
            " one, or use a strategy in which only predictions or images travel (dfd, pooled)"
        )
    return model.unet


def _architecture(unet: UNet2DModel) -> dict[str, Any]:
    """The network's settings, without those that are not its own: names with an underscore, the size of images."""
    settings = {key: list(value) if isinstance(value, tuple) else value for key, value in unet.config.items()}
    return {key: value for key, value in settings.items() if not key.startswith("_") and key != "sample_size"}
