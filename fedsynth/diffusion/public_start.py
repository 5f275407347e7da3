"""The public model whose weights a run's networks start from (``init-from``).

Its images are not those of any silo, so that what it knows costs none of them anything. A network takes all its weights
but the class embeddings, of which it takes those of the classes that the public model knows by name; the others are the
run's own fresh ones, each different: networks of a run whose classes start alike mix up their labels.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import UNet2DModel

from fedsynth.config import Recipe, RunConfig
from fedsynth.diffusion.base_families import BaseModel
from fedsynth.diffusion.base_model import base_model
from fedsynth.diffusion.codec import Codec
from fedsynth.diffusion.model_files import CLASSES_FILE, INDEX_FILE, ModelFiles
from fedsynth.diffusion.recipe import DIFFUSERS_PREDICTION
from fedsynth.diffusion.samplers import noise_schedule
from fedsynth.errors import UserError
from fedsynth.files import as_json
from fedsynth.sealed_tensors import tensor_chunks
from fedsynth.spec import MAX_CLASSES
from fedsynth.weight_files import read_weights

KEY = "init-from"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
EMBEDDINGS = "class_embedding.weight"
_OF_IMAGES = ("sample_size", "num_class_embeds")
"""Settings that may differ: the size of images decides no weight, and class embeddings are taken by name."""
_SCHEDULE_DEFAULTS = {"prediction_type": "epsilon", "trained_betas": None, "rescale_betas_zero_snr": False}


@dataclass(frozen=True, eq=False)
class PublicStart:
    """A public model, read.

    Attributes:
        files: where it was read from.
        classes: names of its classes, in the order of its class embeddings; empty: not known, or it has none.
        digest: SHA-256 of weights and classes, 64 hexadecimal digits: equal wherever networks of one run start.
        weights: by name in the state dict, float32.
    """

    key: ClassVar[str] = KEY
    noun: ClassVar[str] = "public model"

    files: ModelFiles
    classes: tuple[str, ...]
    digest: str
    weights: Mapping[str, torch.Tensor] = field(repr=False)

    def known(self, classes: tuple[str, ...]) -> tuple[str, ...]:
        """Return those of a run's classes whose embeddings are taken."""
        return tuple(name for name in classes if name in self.classes)

    def fill(self, unet: UNet2DModel, classes: tuple[str, ...]) -> None:
        """Give a network the weights.

        Args:
            unet: fresh, of the run's shape.
            classes: the run's, in the order of the network's class embeddings.

        Raises:
            UserError: weights are missing, of other shapes, or none of the network's.
        """
        own = unet.state_dict()
        if found := sorted((self.weights.keys() ^ own.keys()) - {EMBEDDINGS}):
            raise self._damaged(f"'{found[0]}' is missing or unknown")
        filled = {name: value for name, value in self.weights.items() if name != EMBEDDINGS}
        for name, value in filled.items():
            if value.shape != own[name].shape:
                raise self._damaged(f"'{name}' has shape {tuple(value.shape)}, not {tuple(own[name].shape)}")
        if known := self.known(classes):
            rows, table = own[EMBEDDINGS].clone(), self.weights[EMBEDDINGS]
            if table.shape[1] != rows.shape[1]:
                raise self._damaged(f"rows of '{EMBEDDINGS}' have {table.shape[1]} numbers, not {rows.shape[1]}")
            for name in known:
                rows[classes.index(name)] = table[self.classes.index(name)]
            filled[EMBEDDINGS] = rows
        unet.load_state_dict(filled, strict=False)

    def _damaged(self, why: str) -> UserError:
        return self.files.error(f"the network is damaged ({why}): copy or save it again")


def public_start(config: RunConfig) -> PublicStart | None:
    """Return the public model that a run's networks start from; None without ``init-from``."""
    return read_public_model(Path(config.model.init_from)) if config.model.init_from else None


def start_of(config: RunConfig) -> PublicStart | BaseModel | None:
    """Return where a run's networks start, if that is no seed: the model of ``init-from`` or ``base-model``.

    Raises:
        UserError: it cannot be used.
    """
    return base_model(config) or public_start(config)


def read_public_model(folder: Path) -> PublicStart:
    """Read a public model, once per process while its files stay as they are.

    Nothing is unpickled and no code of the folder is run: JSON and safetensors files only.

    Args:
        folder: a diffusers pipeline folder (``unet/`` and ``scheduler/``), or that of a ``UNet2DModel``; with the names
            of its classes as :meth:`~fedsynth.diffusion.model_files.ModelFiles.class_names` finds them.

    Raises:
        UserError: the folder, the network or its classes cannot be used.
    """
    files = ModelFiles.find(folder.expanduser().absolute(), KEY)
    # A process may outlast the files that it has read.
    read = [files.unet / WEIGHTS_FILE, *(root / name for root in files.roots for name in (CLASSES_FILE, INDEX_FILE))]
    stamp = tuple((facts.st_size, facts.st_mtime_ns) for file in read if file.is_file() for facts in [file.stat()])
    return _read(files, stamp)


def start_from_public(unet: UNet2DModel, config: RunConfig, codec: Codec) -> UNet2DModel:
    """Give a run's fresh network the weights of its public model, if it has one, and return it.

    Raises:
        UserError: as of :func:`public_start`; or the public model is no network of the run: another setting of it,
            codec, prediction or noise schedule.
    """
    start = public_start(config)
    if start is not None:
        _check_network(start.files, unet)
        _check_task(start.files, config.recipe, codec)
        start.fill(unet, codec.spec.classes)
    return unet


@lru_cache(maxsize=2)
def _read(files: ModelFiles, stamp: tuple[Any, ...]) -> PublicStart:
    files.check_seal()
    path = files.unet / WEIGHTS_FILE
    if not path.is_file():
        raise files.error(
            f"holds no '{WEIGHTS_FILE}'; pickled weights are not read, as they can run code: save the model with"
            " safe_serialization=True"
        )
    try:
        weights = {name: value.float() for name, value in read_weights(path).items()}
    except ValueError as error:
        raise files.error(f"{error}: copy or save the model again") from error
    table = weights.get(EMBEDDINGS)
    if table is not None and (table.ndim != 2 or len(table) > MAX_CLASSES):
        raise files.error(f"'{EMBEDDINGS}' must be of {MAX_CLASSES} classes at most: copy or save the model again")
    classes = tuple(files.class_names(len(table)) or ()) if table is not None else ()
    digest = hashlib.sha256(f"{json.dumps(classes)}\n".encode())
    for chunk in tensor_chunks(weights):
        digest.update(chunk)
    return PublicStart(files, classes, digest.hexdigest(), weights)


def _check_network(files: ModelFiles, unet: UNet2DModel) -> None:
    path = files.unet / "config.json"
    found = files.read_config(path)
    if found.get("_class_name", "UNet2DModel") != "UNet2DModel":
        raise files.error(f"the network is a {found['_class_name']!s:.60}: give a UNet2DModel")
    parameters = inspect.signature(UNet2DModel.__init__).parameters
    theirs = {**{name: one.default for name, one in parameters.items()}, **found}
    for name, own in unet.config.items():
        if not name.startswith("_") and name not in _OF_IMAGES and as_json(theirs.get(name)) != as_json(own):
            raise files.error(
                f"{name} = {theirs.get(name)!r:.100} in {path.name}, and the run's network has {as_json(own)!r}: give"
                " a model of that shape, or set model, block-out-channels and layers-per-block to the public model's"
            )


def _check_task(files: ModelFiles, recipe: Recipe, codec: Codec) -> None:
    if files.codec() != codec.digest:
        raise files.error(
            f"codec = '{files.codec():.100}', and the run's networks see '{codec.digest}': set codec to the model's"
        )
    path = files.first("scheduler/scheduler_config.json", "scheduler_config.json")
    if path is None:
        raise files.error(
            "no scheduler_config.json says what the network predicts, under which noise: save its scheduler to"
            f" '{files.roots[0] / 'scheduler'}' with save_pretrained"
        )
    theirs = {**_SCHEDULE_DEFAULTS, **files.read_config(path)}
    wanted = {**_SCHEDULE_DEFAULTS, **noise_schedule(recipe)}
    wanted["prediction_type"] = DIFFUSERS_PREDICTION[recipe.prediction]
    if recipe.schedule != "linear":
        del wanted["beta_start"], wanted["beta_end"]
    for name, own in wanted.items():
        if theirs.get(name) != own:
            raise files.error(
                f"{name} = {theirs.get(name)!r:.100} in {path.name}, and the run's networks have {own!r}: set"
                " prediction, schedule and num-train-timesteps (or recipe) to the public model's"
            )
