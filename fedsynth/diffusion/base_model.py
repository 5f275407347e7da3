"""The base model that a run's networks start from (``base-model``): a folder of diffusers.

Its network is trained; autoencoder and text encoder are used as they are. Nothing of it travels: every silo has a copy
of its own, and compares digests before anything is trained.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from fedsynth.config import AUTO, RunConfig, Scalar
from fedsynth.diffusion.base_families import FAMILIES, KEY, BaseModel, part_of
from fedsynth.diffusion.recipe import BETA_SCHEDULES, DIFFUSERS_PREDICTION
from fedsynth.errors import UserError
from fedsynth.latent.folder import CONFIG_FILE, WEIGHTS_FILE, ModelFolder
from fedsynth.sealed import sha256_of
from fedsynth.weight_files import digest_of_weights, shapes_of

SCHEDULER_FILE = "scheduler_config.json"


def base_model(config: RunConfig) -> BaseModel | None:
    """Return the base model of a run; None without ``base-model``.

    Raises:
        UserError: it cannot be used.
    """
    return read_base_model(Path(config.model.base_model)) if config.model.base_model else None


def read_base_model(folder: Path) -> BaseModel:
    """Look through a base model's folder, once per process while its files stay as they are.

    JSON and safetensors files only; nothing is unpickled, no code of the folder is run, and nothing is downloaded.

    Args:
        folder: as Stable Diffusion 1.x and 2.x have it: ``unet``, ``vae``, ``scheduler``, ``text_encoder`` and
            ``tokenizer``, or ``conditions.safetensors`` in place of the last two; or as DiT has it: ``transformer``,
            ``vae`` and ``scheduler``.

    Raises:
        UserError: it cannot be used; names the folder, and says what to do.
    """
    path = folder.expanduser().absolute()
    files = sorted(file for file in path.glob("*/*") if file.is_file()) + sorted(path.glob("*.*"))
    # A process may outlast the files that it has read.
    stamp = tuple((str(file), facts.st_size, facts.st_mtime_ns) for file in files for facts in [file.stat()])
    return _read(path, stamp)


def settle_base_model(config: RunConfig) -> RunConfig:
    """Return a run's configuration with what its base model decides: prediction and noise schedule.

    Raises:
        UserError: the folder cannot be used, or a key says otherwise.
    """
    if not config.model.base_model:
        return config
    found, flat = _schedule(_folder(Path(config.model.base_model).expanduser().absolute())), config.to_run_config()
    for key, value in found.items():
        if flat[key] not in (AUTO, value):
            raise UserError(f"{key} = {flat[key]!r}: the base model has {value!r}: leave {key} out")
    return _settled(config, tuple(found.items()))


@lru_cache(maxsize=4)
def _settled(config: RunConfig, found: tuple[tuple[str, Scalar], ...]) -> RunConfig:
    return config.resolve(dict(found))


def _folder(path: Path) -> ModelFolder:
    folder = ModelFolder(path, f"{KEY} = '{path}'", "the base model")
    folder.check_is_folder()
    return folder


def _schedule(folder: ModelFolder) -> dict[str, Scalar]:
    """Return by configuration key what the scheduler of a base model says."""
    place = ModelFolder(folder.folder / "scheduler", folder.given, "the base model")
    said = {"beta_start": 1e-4, "beta_end": 0.02, "num_train_timesteps": 1000, **place.settings(SCHEDULER_FILE)}
    words = {
        "prediction_type": {theirs: ours for ours, theirs in DIFFUSERS_PREDICTION.items()},
        "beta_schedule": {theirs: ours for ours, theirs in BETA_SCHEDULES.items()},
    }
    usual = {"prediction_type": "epsilon", "beta_schedule": "linear"}
    for name, known in words.items():
        if (value := said.setdefault(name, usual[name])) not in known:
            raise folder.error(
                f"{name} = {value!r:.60} in {SCHEDULER_FILE}: must be {', '.join(known)}; others are not built yet"
            )
    if "Flow" in str(said.get("_class_name")) or said.get("trained_betas") or said.get("rescale_betas_zero_snr"):
        raise folder.error(
            f"{SCHEDULER_FILE}: flow matching, trained betas and rescaled ones are not built yet: give a base model of"
            " a linear, scaled linear or cosine schedule"
        )
    schedule: dict[str, Scalar] = {
        "prediction": words["prediction_type"][said["prediction_type"]],
        "schedule": words["beta_schedule"][said["beta_schedule"]],
        "num-train-timesteps": said["num_train_timesteps"],
    }
    betas = {} if schedule["schedule"] == "cosine" else {"beta-start": said["beta_start"], "beta-end": said["beta_end"]}
    return schedule | betas


@lru_cache(maxsize=2)
def _read(path: Path, stamp: tuple[Any, ...]) -> BaseModel:
    folder = _folder(path)
    family, place = _family(folder)
    settings = {name: value for name, value in place.settings().items() if not name.startswith("_")}
    weights = place.weights_file(WEIGHTS_FILE)
    try:
        parts = [digest_of_weights(weights), repr(sorted(settings.items())), family.facts(folder, settings)]
        shapes = shapes_of(weights)
    except ValueError as error:
        raise error if isinstance(error, UserError) else folder.error(f"{error}: {folder.again}") from error
    parts.append(repr(sorted(_schedule(folder).items())))
    return family(folder, sha256_of([part.encode() for part in parts]), shapes, settings)


def _family(folder: ModelFolder) -> tuple[type[BaseModel], ModelFolder]:
    """Return of which family a base model is, and the folder of its network."""
    for family in FAMILIES:
        place = part_of(folder, family.part)
        if (place.folder / CONFIG_FILE).is_file():
            kind = place.settings().get("_class_name", family.kind)
            if kind == family.kind:
                return family, place
            raise folder.error(
                f"its network is a {kind!s:.60}: give one with a"
                f" {' or a '.join(one.kind for one in FAMILIES)}; other families are not built yet"
            )
    raise folder.error(
        f"holds no network ({' or '.join(f'{one.part}/{CONFIG_FILE}' for one in FAMILIES)}; found {folder.found()}):"
        " give the folder of a Stable Diffusion 1.x or 2.x pipeline, or of a DiT; other families are not built yet"
    )
