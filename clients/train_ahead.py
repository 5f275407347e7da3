"""A silo trains its own model ahead of any run, off-line: ``python -m clients.train_ahead ORDER.json``.

``fedsynth train-local`` writes the order and starts this; the model goes to a folder for ``--model-path``.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
from pathlib import Path

from diffusers.utils import logging as diffusers_logging

from clients.models.local_model import LocalModel
from fedsynth.config import AUTO, RunConfig
from fedsynth.data import Silo, folder_silo, image_folder_spec
from fedsynth.diffusion import initial_unet
from fedsynth.disk import explained_writing
from fedsynth.errors import UserError
from fedsynth.files import atomic_directory
from fedsynth.progress import SLICE_SECONDS, Progress
from fedsynth.spec import ImageSpec

logger = logging.getLogger("fedsynth")


def train_ahead(data: Path, name: str, out: Path, config: RunConfig) -> None:
    """Train the model of the images in ``data`` and write it to ``out``; an interruption costs one slice.

    What is needed to go on lies beside ``out`` until then. The same images, name, configuration and seed give the
    same model.

    Raises:
        UserError: images that cannot be used, ``out`` is there already, or cannot be written.
    """
    if out.exists():
        raise UserError(f"out = '{out}' exists: choose another folder, or remove it to train again")
    size = config.data.image_size
    spec = image_folder_spec(data, None if size == AUTO else size)
    initial_unet(config, spec)  # refuses images the network cannot halve before they are read
    silo = _open(data, name, spec, config)
    workshop = out.with_name(f".{out.name}.training")
    with explained_writing(out):
        model = LocalModel(silo, spec, config, workshop)
        _train(model, config)
        share = model.copied_share()
        with atomic_directory(out) as temporary:
            shutil.copytree(model.folder, temporary, dirs_exist_ok=True)
        shutil.rmtree(workshop)
    if share is not None:
        logger.info("%.0f %% of the model's samples are near-copies of training images", 100 * share)


def _open(data: Path, name: str, spec: ImageSpec, config: RunConfig) -> Silo:
    silo = folder_silo(
        data,
        name,
        config.data.holdout_fraction,
        config.run.seed,
        spec.size,
        spec.channels,
        spec.classes,
        config.data.skip_bad_images,
    )
    counts = dict(zip(spec.classes, silo.train.label_counts().tolist(), strict=True))
    logger.info("%s: %d training images, per class %s", name, len(silo.train), counts)
    return silo


def _train(model: LocalModel, config: RunConfig) -> None:
    goal = config.training.own_steps
    progress: Progress | None = None
    while not model.finished:
        training = model.train_slice(SLICE_SECONDS)
        loss = training.losses[-1]
        if progress is None:
            progress = Progress("training: step", goal, logger.info, interval=0.0, done=training.steps)
        progress.update(goal if model.finished else training.steps, loss=loss)


def main(order: Path) -> int:
    """Carry out an order: JSON with ``data-path``, ``silo-name``, ``out`` and ``config``."""
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    said = json.loads(order.read_text())
    try:
        config = RunConfig.from_run_config(said["config"])
        train_ahead(Path(said["data-path"]), said["silo-name"], Path(said["out"]), config)
    except UserError as error:
        logger.error("error: %s", error)
        return 2
    except KeyboardInterrupt:
        logger.error("interrupted: the same command goes on where it stopped")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
