"""Before the rounds: what real images the server has, and what the run folder says of the silos' images."""

from __future__ import annotations

from typing import Any

from fedsynth.config import OWN_MODELS, RunConfig, Scalar
from fedsynth.config.recipe import recipe_name
from fedsynth.data import LabelledImages, configured_range, load_image_folder, origins_in_folders
from fedsynth.diffusion import AUTOENCODER, codec_of, initial_unet, network_settings, start_of
from fedsynth.errors import UserError
from fedsynth.evaluation import Settings
from fedsynth.evaluation.networks.extractors import resolve_extractor
from fedsynth.output import RunFolder
from fedsynth.spec import ImageSpec
from strategies.base import Task


def check_images(config: RunConfig, spec: ImageSpec) -> None:
    """Refuse, before a silo works, images that the network cannot halve and measures that cannot be taken.

    Raises:
        UserError: says which.
    """
    initial_unet(config, spec)
    if config.evaluation.evaluate:
        Settings.of(config).check((spec.size, spec.size, spec.channels))


def found_settings(config: RunConfig, spec: ImageSpec) -> dict[str, Scalar]:
    """Return by key what ``"auto"`` means when format and classes of the images are known."""
    size, asked = spec.size, config.evaluation
    found = {"image-size": size, "recipe": recipe_name(config.to_run_config()), **network_settings(config, spec)}
    if config.run.strategy in OWN_MODELS and not config.private:
        found["local-steps"] = config.own_steps
    if asked.evaluate:
        weights = Settings.of(config).feature_extractor_weights_path
        shape = (size, size, spec.channels)
        found["feature-extractor"] = resolve_extractor(asked.feature_extractor, shape, weights)
    return found


def load_reference(config: RunConfig, spec: ImageSpec) -> tuple[LabelledImages, LabelledImages] | None:
    """Return train and test fold of the operator's own real images (``reference-root``); None without any.

    Raises:
        UserError: they cannot be used, or have a class that the silos lack.
    """
    root = config.evaluation.reference_root
    if not (root and config.evaluation.evaluate):
        return None
    skip, seed = config.data.skip_bad_images, config.run.seed
    try:
        return load_image_folder(
            root,
            spec.size,
            spec.channels,
            skip,
            seed,
            spec.classes,
            configured_range(config.data),
            config.data.first_page_only,
            origins_in_folders(root, spec.classes),
        )
    except UserError as error:
        raise UserError(f"reference-root = '{root}': {error}") from error


def write_partition(folder: RunFolder, task: Task) -> None:
    """Write who holds what: indices in a simulation, otherwise what the silos said; and which autoencoder and which
    public model it is for.
    """
    held = task.federation.manifest(task.config) if task.federation else _record(task)
    folder.write_partition(held | _autoencoder(task) | _start(task))


def check_partition(folder: RunFolder, task: Task) -> None:
    """Compare what real silos hold now, autoencoder and public model, with what the run to resume was begun with.

    Raises:
        UserError: other classes, another format, autoencoder or public model; a checkpoint would not fit.
    """
    if not folder.partition.is_file():
        return
    then = folder.read_partition()
    had, now = then.get("codec"), _autoencoder(task).get("codec")
    if had != now:
        here = f"the autoencoder in '{task.config.model.autoencoder}' is '{now}'" if now else "no autoencoder is given"
        there = f"has '{had}': give the folder of that one" if had else "works without one: leave autoencoder out"
        raise UserError(f"codec: {here}, the run to resume {there}, or start another run")
    had, now = then.get("start"), _start(task).get("start")
    if had != now:
        key, noun = (start.key, start.noun) if (start := start_of(task.config)) else ("init-from", "public model")
        here = f"the {noun} is '{now}'" if now else f"no {noun} is given"
        there = f"has '{had}': give the folder of that one" if had else f"works without one: leave {key} out"
        raise UserError(f"{key}: {here}, the run to resume {there}, or start another run")
    if task.federation is not None:
        return
    found = _record(task)
    for key in ("classes", "image-size", "image-channels"):
        if then.get(key) != found[key]:
            raise UserError(
                f"{key}: the silos now give {found[key]}, the run to resume has {then.get(key)}:"
                " bring the silos' folders back to what they were, or start another run"
            )


def _autoencoder(task: Task) -> dict[str, Any]:
    codec = codec_of(task.config, task.spec)
    return {"codec": codec.digest} if codec.name == AUTOENCODER else {}


def _start(task: Task) -> dict[str, Any]:
    start = start_of(task.config)
    return {"start": start.digest} if start else {}


def _record(task: Task) -> dict[str, Any]:
    spec = task.spec
    silos = [{"silo-name": member.name, "label-counts": member.label_counts} for member in task.census]
    return {
        "classes": list(spec.classes),
        "image-size": spec.size,
        "image-channels": spec.channels,
        "clients": silos,
    }
