"""What ``fedsynth draw`` does."""

from __future__ import annotations

import argparse
import logging
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedsynth import __version__
from fedsynth.cli.options import given_keys
from fedsynth.config import AUTO, RunConfig, Scalar, keys_of
from fedsynth.diffusion import SAMPLERS, Codec, make_scheduler, pick_device, sample
from fedsynth.diffusion.codec import saved_codec
from fedsynth.diffusion.pretrained import PretrainedModel, load_pretrained_model
from fedsynth.diffusion.recipe import BETA_SCHEDULES
from fedsynth.disk import check_writable
from fedsynth.errors import UserError, did_you_mean
from fedsynth.files import parse_json
from fedsynth.output import SyntheticDataset, write_dataset
from fedsynth.progress import Progress
from fedsynth.seeding import make_generator
from fedsynth.spec import ImageSpec

logger = logging.getLogger("fedsynth")

DEFAULT_SAMPLER = "sde-dpmsolver++"
BLOCK = 256
"""Images drawn at a time: memory does not grow with their number, but for the finished ones."""

_SCHEDULE = {"num_train_timesteps": "num-train-timesteps"}
_LINEAR = {"beta_start": "beta-start", "beta_end": "beta-end"}


def draw(options: argparse.Namespace) -> int:
    """Draw the images, and write them as a dataset like that of a run.

    Raises:
        UserError: the model cannot be read, a class or setting is not one, or the dataset cannot be written.
    """
    given = {key: value for key, value in given_keys(options, keys_of("draw")).items() if value != AUTO}
    config = RunConfig.from_run_config(given)  # what the user gave is refused before what the folder says
    codec = _codec(options.model, config.model.autoencoder)
    config = RunConfig.from_run_config({**_saved_settings(options.model), **given})
    spec = codec.spec
    labels = _labels(config, spec.classes, options.classes)
    make_scheduler(config.recipe, config.sampling.sampling_steps, config.settings.sampler)
    _check_output(options.output)
    model = load_pretrained_model(options.model, codec, config.recipe, spec.classes, pick_device(config.run.device))
    images = _draw(model, config, codec, labels)
    dataset = SyntheticDataset(images, labels.numpy(), spec.classes, _provenance(options.model, config, codec))
    write_dataset(dataset, options.output)
    print(f"dataset {options.output}")
    return 0


def _check_output(path: Path) -> None:
    if path.exists():
        raise UserError(f"--output '{path}' exists: give a folder that does not, or remove it")
    check_writable(path)


def _codec(folder: Path, autoencoder: str) -> Codec:
    """Read what the images of a model look like, and how its network sees them.

    Raises:
        UserError: no folder of a class-conditional pipeline, or not the model's autoencoder.
    """
    if not folder.is_dir():
        raise UserError(f"model '{folder}': there is no such folder; give models/generator or models/global of a run")
    index, unet = _read(folder, "model_index.json"), _read(folder, "unet/config.json")
    classes = index.get("classes")
    if not classes or not unet.get("num_class_embeds"):
        raise UserError(f"model '{folder}' has no classes: give a class-conditional one, as fedsynth saves it")
    channels, size = unet.get("in_channels"), unet.get("sample_size")
    if not isinstance(channels, int) or not isinstance(size, int):
        raise UserError(f"model '{folder}': its unet/config.json names no channels and size: copy or save it again")
    codec = saved_codec(index, ImageSpec(channels, size, tuple(map(str, classes))), autoencoder)
    if codec.spec.channels not in (1, 3):
        raise UserError(f"model '{folder}' makes images of {codec.spec.channels} channels: 1 or 3 are needed")
    return codec


def _saved_settings(folder: Path) -> dict[str, Scalar]:
    """Return what was saved with a model: its sampler, or the default, and its noise schedule.

    A noise schedule that no run can have is left out: it is matched level by level.
    """
    config = _read(folder, "scheduler/scheduler_config.json")
    sampler = config.get("algorithm_type")
    settings = {"sampler": sampler if sampler in SAMPLERS else DEFAULT_SAMPLER}
    schedule = {name: word for word, name in BETA_SCHEDULES.items()}.get(config.get("beta_schedule", "linear"))
    if schedule is None:
        return settings
    saved = _SCHEDULE | (_LINEAR if schedule == "linear" else {})
    return settings | {"schedule": schedule} | {key: config[name] for name, key in saved.items() if name in config}


def _read(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    if not path.is_file():
        raise UserError(
            f"model '{folder}' is no diffusers pipeline, it holds no {name}: give models/generator of a run"
        )
    try:
        return dict(parse_json(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"model '{folder}': {name} is damaged ({error}): copy or save the model again") from error


def _labels(config: RunConfig, classes: tuple[str, ...], asked: str | None) -> torch.Tensor:
    """Return the class of every image, int64 (N,): equal shares of the classes asked for, in turn."""
    if config.sampling.labels != "balanced":
        raise UserError(
            f"labels = '{config.sampling.labels}': a model does not say how frequent its classes were; leave it out,"
            " and choose with --classes"
        )
    names = classes if asked is None else tuple(word.strip() for word in asked.split(","))
    for name in names:
        if name not in classes:
            raise UserError(f"--classes: unknown class '{name}'{did_you_mean(name, classes)} ({', '.join(classes)})")
    if len(set(names)) < len(names):
        raise UserError(f"--classes '{asked}': name each once")
    indices = torch.tensor([classes.index(name) for name in names])
    return indices[torch.arange(config.sampling.num_samples) % len(names)]


def _draw(model: PretrainedModel, config: RunConfig, codec: Codec, labels: torch.Tensor) -> NDArray[np.uint8]:
    spec, steps = codec.spec, config.sampling.sampling_steps
    images = np.empty((len(labels), spec.size, spec.size, spec.channels), np.uint8)
    progress = Progress("image", len(labels), logger.info)
    for first in range(0, len(labels), BLOCK):
        rows = slice(first, first + BLOCK)
        generator = make_generator(config.run.seed, "draw", first)
        noise = torch.randn((len(labels[rows]), *codec.shape), generator=generator)
        scheduler = make_scheduler(config.recipe, steps, config.settings.sampler, codec.bound)
        images[rows] = codec.decode(sample(model.predict, scheduler, noise, labels[rows], generator))
        progress.update(first + len(noise))
    return images


def _provenance(model: Path, config: RunConfig, codec: Codec) -> dict[str, Any]:
    flat = config.to_run_config()
    settings = {key: flat[key] for key in sorted(keys_of("draw") - {"seed", "device", "autoencoder"})}
    return {
        "method": "drawn from a saved model",
        "settings": {"model": _shown(model), "codec": codec.digest, **settings},
        "seed": config.run.seed,
        "software": {"fedsynth": __version__, **{name: version(name) for name in ("torch", "diffusers")}},
    }


def _shown(model: Path) -> str:
    """Return which model it is, without the folders of this machine: with its run, if it lies in one."""
    in_a_run = model.absolute().parent.name == "models"
    return "/".join(model.absolute().parts[-3:]) if in_a_run else model.name
