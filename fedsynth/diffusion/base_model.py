"""The base model that a run's networks start from (``base-model``): a folder of diffusers with prompts in place of
classes.

Its U-Net is trained; autoencoder and text encoder are used as they are. Nothing of it travels: every silo has a copy of
its own, and compares digests before anything is trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import torch

from fedsynth.adapter_shapes import Shape
from fedsynth.config import AUTO, RunConfig, Scalar
from fedsynth.diffusion.adapters import AdaptedUNet, Adapters
from fedsynth.diffusion.codec import Codec
from fedsynth.diffusion.denoiser import PromptedUNet
from fedsynth.diffusion.recipe import BETA_SCHEDULES, DIFFUSERS_PREDICTION
from fedsynth.errors import UserError
from fedsynth.latent.conditions import NOTHING, digest_of_text, prompts_of, read_conditions
from fedsynth.latent.folder import WEIGHTS_FILE, ModelFolder
from fedsynth.sealed import sha256_of
from fedsynth.weight_files import digest_of_weights, shapes_of

KEY = "base-model"
SCHEDULER_FILE = "scheduler_config.json"
KIND = "UNet2DConditionModel"
_NOT_BUILT = {
    "class_embed_type": "classes besides prompts",
    "num_class_embeds": "classes besides prompts",
    "addition_embed_type": "pooled embeddings, as Stable Diffusion XL has them,",
    "encoder_hid_dim_type": "embeddings of images",
}
"""Settings of a U-Net that must be None -> what it then would take."""


@dataclass(frozen=True, eq=False)
class BaseModel:
    """A base model's folder, looked through.

    Attributes:
        folder: where it is.
        digest: SHA-256 of all that is frozen or started from, but for the autoencoder, which the codec's names; 64
            hexadecimal digits.
        shapes: of the tensors of its U-Net, by state dict name.
    """

    key: ClassVar[str] = KEY
    noun: ClassVar[str] = "base model"

    folder: ModelFolder
    digest: str
    shapes: Mapping[str, Shape] = field(repr=False)
    _settings: dict[str, Any] = field(repr=False)

    @property
    def num_weights(self) -> int:
        """Numbers in its U-Net."""
        return sum(map(math.prod, self.shapes.values()))

    def prompts(self, template: str, classes: tuple[str, ...]) -> tuple[str, ...]:
        """Return the prompt of every class, as :func:`fedsynth.latent.conditions.prompts_of`."""
        return prompts_of(self.folder, template, classes)

    def network(
        self, template: str, codec: Codec, adapters: Adapters | None = None, with_nothing: bool = False
    ) -> PromptedUNet:
        """Return the U-Net with the prompts of a run's classes, on the CPU, in single precision.

        Args:
            template: ``prompt`` of the run.
            codec: the run's.
            adapters: that it is given; None: its weights themselves are trained.
            with_nothing: whether it can be asked by an empty prompt.

        Raises:
            UserError: it is no network of such latents, or its prompts cannot be had.
        """
        from diffusers import UNet2DConditionModel  # a second that other runs do without

        unet_folder = _unet_folder(self.folder)
        self._check_grid(codec)
        prompts = self.prompts(template, codec.spec.classes)
        conditions = _conditions(self, (*prompts, NOTHING) if with_nothing else prompts).clone()
        conditions, nothing = (conditions[:-1], conditions[-1]) if with_nothing else (conditions, None)
        width = self._settings.get("cross_attention_dim", 1280)
        if width != conditions.shape[-1]:
            raise unet_folder.error(
                f"its U-Net attends to {width!s:.60} numbers, and a prompt has {conditions.shape[-1]}:"
                f" {unet_folder.again}"
            )
        unet, _ = unet_folder.build(UNet2DConditionModel, self._settings, unet_folder.weights(), ())
        if adapters is not None:
            return AdaptedUNet(unet.float(), conditions, adapters, self.digest, nothing)
        return PromptedUNet(unet.float(), conditions, nothing)

    def _check_grid(self, codec: Codec) -> None:
        channels = self._settings.get("in_channels", 4), self._settings.get("out_channels", 4)
        if channels != (codec.grid.channels,) * 2:
            raise self.folder.error(
                f"its U-Net takes {channels[0]} channels and answers {channels[1]}, and latents have"
                f" {codec.grid.channels}: give a text-to-image model"
            )
        halved = 2 ** (len(self._settings.get("block_out_channels", (0,) * 4)) - 1)
        if codec.grid.size % halved:
            step = halved * codec.factor
            near = max(1, round(codec.spec.size / step)) * step
            raise UserError(
                f"image-size = {codec.spec.size}: must be a multiple of {step} for this base model: set image-size ="
                f" {near}"
            )


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
            ``tokenizer``, or ``conditions.safetensors`` in place of the last two.

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


def _unet_folder(folder: ModelFolder) -> ModelFolder:
    found = ModelFolder(folder.folder / "unet", folder.given, "the base model")
    if not (found.folder / "config.json").is_file():
        raise folder.error(
            f"holds no U-Net (unet/config.json; found {folder.found()}): give the folder of a Stable Diffusion 1.x or"
            " 2.x pipeline; other families are not built yet"
        )
    return found


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
    unet = _unet_folder(folder)
    settings = {name: value for name, value in unet.settings().items() if not name.startswith("_")}
    kind = unet.settings().get("_class_name", KIND)
    if kind != KIND:
        raise folder.error(f"its network is a {kind!s:.60}: give one with a {KIND}; other families are not built yet")
    for name, takes in _NOT_BUILT.items():
        if settings.get(name) is not None:
            raise folder.error(f"{name} = {settings[name]!r:.60}: a U-Net that takes {takes} is not built yet")
    weights = unet.weights_file(WEIGHTS_FILE)
    try:
        parts = [digest_of_weights(weights), repr(sorted(settings.items())), digest_of_text(folder)]
        shapes = shapes_of(weights)
    except ValueError as error:
        raise error if isinstance(error, UserError) else folder.error(f"{error}: {folder.again}") from error
    parts.append(repr(sorted(_schedule(folder).items())))
    return BaseModel(folder, sha256_of([part.encode() for part in parts]), shapes, settings)


@lru_cache(maxsize=4)
def _conditions(base: BaseModel, prompts: tuple[str, ...]) -> torch.Tensor:
    return read_conditions(base.folder, prompts)
