"""A silo's own diffusion model: trained in slices, kept on the silo's disk, found again by content."""

from __future__ import annotations

import hashlib
import json
import logging
import time
import zipfile
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel

from fedsynth import __version__
from fedsynth.config import RunConfig
from fedsynth.data import Silo
from fedsynth.diffusion import (
    ClassConditionalDDPMPipeline,
    TrainingState,
    initial_unet,
    loss_curve,
    make_scheduler,
    pick_device,
    to_model_range,
    train,
)
from fedsynth.errors import UserError
from fedsynth.files import atomic_directory, write_json
from fedsynth.seeding import make_generator
from fedsynth.spec import ImageSpec

logger = logging.getLogger("fedsynth")


class LocalModel:
    """The model of one silo under one configuration.

    Args:
        silo: the silo's images.
        spec: image format and classes of the run.
        config: model, training and diffusion settings.
        state: the silo's own state folder.

    Attributes:
        folder: finished model, a diffusers pipeline folder; its name is a hash of all that training depends on.
    """

    def __init__(self, silo: Silo, spec: ImageSpec, config: RunConfig, state: Path) -> None:
        self._silo, self._spec, self._config = silo, spec, config
        self.key = _content_key(silo, spec, config)
        self.folder = state / "models" / self.key
        self._checkpoint = state / "training" / f"{self.key}.pt"

    @property
    def finished(self) -> bool:
        """Whether the trained model is on disk."""
        return (self.folder / "model_index.json").is_file()

    def history(self) -> dict[str, Any]:
        """Loss curve (``steps``, ``losses``) and ``seconds`` of the finished training."""
        return dict(json.loads((self.folder / "training.json").read_text()))

    def train_slice(self, seconds: float) -> TrainingState:
        """Train for about ``seconds``, then save: the finished model, or a checkpoint to continue from.

        Nothing stays in memory between slices, because the next one may run in another process.
        """
        start = time.monotonic()
        training = self._resume()
        images, labels = to_model_range(self._silo.train.images), torch.from_numpy(self._silo.train.labels)
        settings, goal = self._config.training, self._config.training.own_steps
        train(training, images, labels, settings, self._config.diffusion, goal, deadline=start + seconds)
        training.seconds += time.monotonic() - start
        if training.steps < goal:
            training.save(self._checkpoint)
        else:
            self._finish(training)
        return training

    def _resume(self) -> TrainingState:
        unet = initial_unet(self._config, self._spec).to(pick_device(self._config.run.device))
        generator = make_generator(self._config.run.seed, "local-training", self._silo.name)
        training = TrainingState(unet, self._config.training, generator)
        # A power cut can tear a file after its renaming. The same training from the start ends in the same model.
        if zipfile.is_zipfile(self._checkpoint):
            training.load(self._checkpoint)
        elif self._checkpoint.exists():
            logger.warning("%s: checkpoint '%s' is damaged, training starts again", self._silo.name, self._checkpoint)
        return training

    def _finish(self, training: TrainingState) -> None:
        scheduler = make_scheduler(self._config.diffusion)
        pipeline = ClassConditionalDDPMPipeline(training.averaged_unet(), scheduler, self._spec.classes)
        with atomic_directory(self.folder) as temporary:
            pipeline.save_pretrained(temporary)
            write_json(temporary / "training.json", {"seconds": training.seconds, **loss_curve(training.losses)})
        self._checkpoint.unlink(missing_ok=True)


def load_network(folder: Path, device: torch.device) -> UNet2DModel:
    """Load the network of a finished model.

    Raises:
        UserError: the folder is damaged.
    """
    try:
        unet = UNet2DModel.from_pretrained(folder / "unet", use_safetensors=True, low_cpu_mem_usage=False)
    except (OSError, ValueError) as error:
        raise UserError(f"model '{folder}' is damaged: remove the folder to train it again ({error})") from error
    return unet.to(device)


def _content_key(silo: Silo, spec: ImageSpec, config: RunConfig) -> str:
    # The same training is found again, whichever of the two keys says how long it is.
    training = config.training.model_dump(exclude={"local_steps"}) | {"train_steps": config.training.own_steps}
    content = {
        "fedsynth": __version__,
        "silo": silo.name,
        "data": silo.fingerprint(),
        "spec": [spec.channels, spec.size, *spec.classes],
        "dataset": config.data.dataset,
        "seed": config.run.seed,
        "model": config.model.model_dump(),
        "training": training,
        "diffusion": config.diffusion.model_dump(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
