"""A pretrained diffusion model: any U-Net, any noise schedule, asked at the run's timesteps and labels."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DModel
from numpy.typing import NDArray

from fedsynth.config import Recipe
from fedsynth.diffusion.codec import AUTOENCODER, NAMES, Codec, convert
from fedsynth.diffusion.model_files import CLASSES_FILE, ModelFiles
from fedsynth.diffusion.noise_levels import PREDICTION_TYPES, Level, match_levels, to_noise
from fedsynth.diffusion.recipe import DIFFUSERS_PREDICTION
from fedsynth.diffusion.samplers import make_scheduler
from fedsynth.errors import UserError, did_you_mean
from fedsynth.spec import ImageSpec

logger = logging.getLogger("fedsynth")

BATCH_SIZE = 256
UNKNOWN = -1
_SCHEDULE = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
)


class PretrainedModel:
    """Predicts ε(x_t, t, y) at the run's timesteps and labels.

    Args:
        unet: the network, on its device.
        prediction_type: what it predicts, one of :data:`~fedsynth.diffusion.noise_levels.PREDICTION_TYPES`.
        levels: how to ask it at each timestep of the run (T).
        indices: its class for every label of the run, int64 (num_classes,); :data:`UNKNOWN` where it has none.
        codec: the run's, with its classes.
        own_codec: the network's.
        native: whether it predicts what the run's networks predict, of the same codec.
    """

    def __init__(
        self,
        unet: UNet2DModel,
        prediction_type: str,
        levels: list[Level],
        indices: torch.Tensor,
        codec: Codec,
        own_codec: Codec,
        native: bool,
    ) -> None:
        self.unet = unet.eval()
        self.prediction_type = prediction_type
        self.levels = levels
        self.codec = codec
        self._own_codec = own_codec
        self._native = native
        self._indices = indices
        self._classes = codec.spec.classes
        self._conditional = unet.config.num_class_embeds is not None

    @property
    def serves(self) -> NDArray[np.bool_]:
        """Which of the run's classes it can be asked about, bool (num_classes,)."""
        return (self._indices != UNKNOWN).numpy()

    @property
    def native(self) -> bool:
        """Whether the bare network answers as the run's would: of the same grid, at its levels, for its labels."""
        levels = all(level.exact and level.timestep == t for t, level in enumerate(self.levels))
        labels = self._conditional and torch.equal(self._indices, torch.arange(len(self._indices)))
        return levels and labels and self._native

    @torch.inference_mode()
    def predict(self, x: torch.Tensor, t: int, labels: torch.Tensor) -> torch.Tensor:
        """Return ε (N, C, H, W) as :func:`~fedsynth.diffusion.sampling.noise_predictor` does, on the CPU.

        Evaluated in batches on the network's device. What happens at levels outside the range of the model's own
        schedule: see :func:`~fedsynth.diffusion.noise_levels.match_levels`.

        Args:
            x: samples (N, C, H, W) on the CPU.
            t: timestep of the run.
            labels: classes of the run (N,).

        Raises:
            UserError: a class that the model does not know.
        """
        level = self.levels[t]
        indices = self._own_classes(labels)
        eps = torch.empty_like(x)
        for first in range(0, len(x), BATCH_SIZE):
            rows = slice(first, first + BATCH_SIZE)
            own_x = convert(x[rows], self.codec, self._own_codec)
            eps[rows] = convert(self._ask(own_x, level, indices[rows]), self._own_codec, self.codec)
        return eps

    def _ask(self, x: torch.Tensor, level: Level, indices: torch.Tensor) -> torch.Tensor:
        device = self.unet.device
        own_x = x if level.scale == 1 else x * level.scale
        # The network would cut a Python float down to a whole number.
        whole = level.timestep.is_integer()
        timestep = int(level.timestep) if whole else torch.tensor(level.timestep, device=device)
        classes = indices.to(device) if self._conditional else None
        output = self.unet(own_x.to(device), timestep, class_labels=classes).sample.cpu()
        return level.to_run(
            to_noise(output, own_x, level.own_alpha_bar, self.prediction_type, self._own_codec.bound), x
        )

    def _own_classes(self, labels: torch.Tensor) -> torch.Tensor:
        indices = self._indices[labels]
        if (indices == UNKNOWN).any():
            name = self._classes[int(labels[indices == UNKNOWN][0])]
            known = ", ".join(self._classes[k] for k in np.flatnonzero(self.serves))
            raise UserError(
                f"asked about class '{name}', which the model in model-path does not know (it knows {known}):"
                " set prior = 'class', with which a silo is only asked about its own classes"
            )
        return indices


def load_pretrained_model(
    folder: Path,
    codec: Codec,
    recipe: Recipe,
    held_classes: Sequence[str],
    device: torch.device | None = None,
) -> PretrainedModel:
    """Load the model that a silo has trained before, elsewhere.

    Nothing is unpickled and no code of the folder is run: JSON and safetensors files only. The model must have been
    trained on images in [-1, 1], as diffusers' pipelines are.

    Args:
        folder: a diffusers pipeline folder (``unet/`` and ``scheduler/``), or that of a ``UNet2DModel`` with
            ``scheduler_config.json`` in it or in ``scheduler/`` in or beside it. A class-conditional model needs the
            names of its classes in index order: our pipeline's, or a list in ``classes.json`` in the same places.
        codec: images and classes of the run, and how its samples are laid out; classes are matched by name.
        recipe: noise schedule and prediction of the run.
        held_classes: names of the classes that the silo holds. A model without classes is that of the only one.
        device: where the network works; None: the CPU.

    Raises:
        UserError: the folder, the network, its scheduler or its classes cannot be used.
    """
    files = ModelFiles.find(folder, "model-path")
    files.check_seal()
    spec = codec.spec
    own_codec = _own_codec(files, codec)
    unet = _read_unet(files, own_codec.grid)
    schedule, prediction_type = _read_scheduler(files)
    indices = _class_indices(files, unet, spec, held_classes)
    scheduler = make_scheduler(recipe)
    run_schedule = _alphas_cumprod(scheduler)
    if np.array_equal(run_schedule, schedule):
        # Rounded as training, samplers and noise_predictor have it.
        run_schedule = schedule = scheduler.alphas_cumprod.double().numpy()
    # A table of embeddings has rows for whole timesteps only.
    fractional = unet.config.time_embedding_type == "positional"
    levels = match_levels(run_schedule, schedule, fractional)
    native = DIFFUSERS_PREDICTION[recipe.prediction] == prediction_type and own_codec == codec
    return PretrainedModel(
        unet.to(device or "cpu"), prediction_type, levels, torch.tensor(indices), codec, own_codec, native
    )


def _own_codec(files: ModelFiles, codec: Codec) -> Codec:
    name, spec = files.codec(), codec.spec
    if name == codec.digest:
        return codec
    if AUTOENCODER in (codec.name, name.partition(" ")[0]):
        raise files.error(
            f"its codec is '{name:.100}', and the run's is '{codec.digest}': give a model of the same autoencoder, or"
            " remove model-path to train one here"
        )
    if name not in NAMES or spec.size % NAMES[name]:
        known = ", ".join(name for name, factor in NAMES.items() if spec.size % factor == 0)
        raise files.error(
            f"its codec is {name!r}, and images of size {spec.size} can be seen through {known}: give a model of such"
            " images, or remove model-path to train one here"
        )
    return Codec(spec, NAMES[name])


def _read_unet(files: ModelFiles, spec: ImageSpec) -> UNet2DModel:
    _check_config(files, files.read_config(files.unet / "config.json"), spec)
    if not list(files.unet.glob("*.safetensors")):
        found = ", ".join(sorted(file.name for file in files.unet.iterdir() if file.name != "config.json")) or "nothing"
        raise files.error(
            f"no safetensors weights in '{files.unet.name}' (found {found}), and pickled ones are not read, as they can"
            " run code: save the model again with safe_serialization=True"
        )
    try:
        unet, report = UNet2DModel.from_pretrained(
            files.unet, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True, local_files_only=True
        )
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise files.error(f"the network is damaged: copy or save it again ({error})") from error
    wrong = sorted({*report["missing_keys"], *report["unexpected_keys"]})
    wrong += [name for name, value in unet.state_dict().items() if not value.isfinite().all()]
    if wrong:
        raise files.error(f"the network is damaged: copy or save it again (missing, unknown or not finite: {wrong[0]})")
    return unet.float()


def _check_config(files: ModelFiles, config: dict[str, Any], spec: ImageSpec) -> None:
    kind = config.get("_class_name", "UNet2DModel")
    if kind != "UNet2DModel":
        raise files.error(f"the network is a {kind}: give a UNet2DModel")
    for key in ("in_channels", "out_channels", "block_out_channels"):
        if key not in config:
            raise files.error(f"the network's config.json has no {key}: copy or save the model again")
    channels = [config["in_channels"], config["out_channels"]]
    if channels != [spec.channels] * 2:
        raise files.error(
            f"the network takes {channels[0]} channels and answers {channels[1]}, but here it sees"
            f" {spec.channels} of the run's images: give a model of such images, or remove model-path to train one here"
        )
    factor = 2 ** (len(config["block_out_channels"]) - 1)
    if spec.size % factor:
        raise files.error(f"the network halves images to 1/{factor}, and image-size = {spec.size} is no multiple of it")
    if config.get("time_embedding_type", "positional") not in ("positional", "learned"):
        raise files.error(
            "the network takes noise standard deviations in place of timesteps: give one with positional timesteps"
        )
    if config.get("class_embed_type") is not None:
        raise files.error(f"class_embed_type = '{config['class_embed_type']}': give a model with num_class_embeds")
    if config.get("sample_size") not in (None, spec.size, [spec.size, spec.size]):
        made = config["sample_size"]
        logger.warning("model-path = '%s': made for images of size %s, asked about %d", files.folder, made, spec.size)


def _read_scheduler(files: ModelFiles) -> tuple[NDArray[np.float64], str]:
    path = files.first("scheduler/scheduler_config.json", "scheduler_config.json")
    if path is None:
        raise files.error(
            "no scheduler_config.json says which noise schedule the network was trained with: save its scheduler to"
            f" '{files.roots[0] / 'scheduler'}' with save_pretrained"
        )
    config = files.read_config(path)
    prediction_type = config.get("prediction_type", "epsilon")
    if prediction_type not in PREDICTION_TYPES:
        allowed = ", ".join(PREDICTION_TYPES)
        raise files.error(f"prediction_type = '{prediction_type}' in {path.name}: must be one of {allowed}")
    if "beta_start" not in config and not config.get("trained_betas"):
        raise files.error(f"{path.name} has no betas: give a model of a variance-preserving schedule, such as DDPM's")
    try:
        alpha_bars = _alphas_cumprod(DDPMScheduler(**{key: config[key] for key in _SCHEDULE if key in config}))
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        raise files.error(f"{path.name} describes no noise schedule ({error}): save the scheduler again") from error
    if not (np.diff(alpha_bars, prepend=1.0) < 0).all() or alpha_bars[-1] < 0:
        raise files.error(f"{path.name} describes no noise schedule: every beta must be > 0 and at most 1")
    return alpha_bars, prediction_type


def _alphas_cumprod(scheduler: Any) -> NDArray[np.float64]:
    """ᾱ in float64: in float32 the ratio at the cleanest level is off by up to a thousandth."""
    return np.asarray(np.cumprod(1 - scheduler.betas.double().numpy()))


def _class_indices(files: ModelFiles, unet: UNet2DModel, spec: ImageSpec, held: Sequence[str]) -> list[int]:
    if unet.config.num_class_embeds is None:
        if len(held) != 1:
            raise files.error(
                f"the model has no classes, so that it can serve a silo of one class, but this one holds {len(held)}"
                f" ({', '.join(held)}): give a class-conditional model, or start one silo per class"
            )
        return [0 if name == held[0] else UNKNOWN for name in spec.classes]
    names = _class_names(files, int(unet.config.num_class_embeds))
    if not set(held) & set(names):
        raise files.error(
            f"the model knows {', '.join(names)}, but this silo holds {', '.join(held)}{did_you_mean(held[0], names)}:"
            f" give the model's classes the run's names, in '{files.roots[0] / CLASSES_FILE}'"
        )
    return [names.index(name) if name in names else UNKNOWN for name in spec.classes]


def _class_names(files: ModelFiles, count: int) -> list[str]:
    names = files.class_names(count)
    if names is None:
        raise files.error(
            f"the model has {count} classes, and nothing says which: put '{CLASSES_FILE}' there, a list of their names"
            ' in index order, such as ["cat", "dog"]'
        )
    return names
