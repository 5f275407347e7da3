"""A silo trains its own model off-line, before any run: ``python -m clients.pretrain JOB.json``.

``fedsynth train-local`` writes the job file and starts this; the model goes to a folder for ``--model-path``.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers.utils import logging as diffusers_logging

from clients.models.local_model import LocalModel
from clients.privacy_account import PrivacyAccount
from clients.released import ImageFiles, ReleasedAnswers
from fedsynth.config import AUTO, RunConfig
from fedsynth.data import ImageCache, Silo, configured_range, folder_silo, image_folder_spec, list_images
from fedsynth.diffusion import initial_unet, settle_base_model
from fedsynth.disk import explained_writing
from fedsynth.errors import UserError
from fedsynth.files import atomic_directory
from fedsynth.locks import locked
from fedsynth.logs import log_of_command
from fedsynth.policy import SiloPolicy, read_policy
from fedsynth.privacy.dp_training import check_delta
from fedsynth.privacy.spending import note_file
from fedsynth.progress import SLICE_SECONDS, Progress
from fedsynth.spec import ImageSpec
from fedsynth.text import folder_of_name

logger = logging.getLogger("fedsynth")

COMMAND = "train-local"
"""What the privacy account calls it in the place of a run's number."""


@dataclass(frozen=True)
class Place:
    """Where a silo keeps what all that touches its images costs them, as for ``fedsynth silo start``.

    Attributes:
        state: folder below which its state folder is.
        policy: its policy file; None: the default acts.
    """

    state: Path
    policy: Path | None = None


def pretrain(
    data: Path, name: str, out: Path, config: RunConfig, group_column: str = "", place: Place | None = None
) -> None:
    """Train the model of the images in ``data`` and write it to ``out``; an interruption costs one slice.

    Checkpoints lie beside ``out`` until then. The same images, name, configuration and seed give the
    same model, but for the noise of a private training. Images of one group, which a column of the table in ``data``
    names, are never both trained on and held out.

    Args:
        data: the images, one folder per class.
        name: of the silo.
        out: folder of the model.
        config: how it is trained.
        group_column: name of the column; empty: none.
        place: of the privacy account, in which a private training is written before its first step.

    Raises:
        UserError: images that cannot be used, ``out`` is there already, or cannot be written; a private training
            without an account, or with a δ above 1 / images.
        PolicyError: the policy's budget of ε has no room for it, or exact counts are all that it tells.
    """
    if out.exists():
        raise UserError(f"out = '{out}' exists: choose another folder, or remove it to train again")
    size = config.data.image_size
    spec = image_folder_spec(data, None if size == AUTO else size)
    initial_unet(config, spec)  # refuses images the network cannot halve before they are read
    checkpoints = out.with_name(f".{out.name}.training")
    silo = _open(data, name, spec, config, group_column, ImageCache(checkpoints / "images"))
    with explained_writing(out), locked(checkpoints / ".lock", f"'{out}'"):
        private = _private_terms(data, name, spec, config, place) if config.private else {}
        model = LocalModel(silo, spec, config, checkpoints, **private)
        _train(model, config)
        share = model.copied_share()
        with atomic_directory(out) as temporary:
            shutil.copytree(model.folder, temporary, dirs_exist_ok=True)
        shutil.rmtree(checkpoints)
    if share is not None:
        logger.info("%.0f %% of the model's samples are near-copies of training images", 100 * share)


def _private_terms(data: Path, name: str, spec: ImageSpec, config: RunConfig, place: Place | None) -> dict[str, Any]:
    """Return what a private training must know of the silo: how many images it tells, and what to call before it."""
    if place is None:
        raise UserError(f"dp-epsilon = {config.privacy.dp_epsilon}: no privacy account is given to write the steps in")
    state, policy = place.state / folder_of_name(name), read_policy(place.policy) if place.policy else SiloPolicy()
    note = note_file(place.policy, state.name) if place.policy else None
    account = PrivacyAccount(state, policy, COMMAND, note)
    files = ImageFiles(data, list_images(data, spec.classes).files)
    if not policy.count_noise:
        policy.refuse("count_noise", "exact counts are not private, and the training has a dp-epsilon")
    told = ReleasedAnswers(files, state, policy, account).training_counts(spec.classes, config.data.holdout_fraction)
    check_delta(config, images := int(told.sum()))
    logger.info("privacy account %s", account.path)
    return {"told_images": images, "before_steps": account.before_steps(files.key)}


def _open(data: Path, name: str, spec: ImageSpec, config: RunConfig, group_column: str, cache: ImageCache) -> Silo:
    silo = folder_silo(
        data,
        name,
        config.data.holdout_fraction,
        config.run.seed,
        spec.size,
        spec.channels,
        spec.classes,
        config.data.skip_bad_images,
        configured_range(config.data),
        config.data.first_page_only,
        group_column,
        cache,
        each_alone=config.private,
    )
    counts = dict(zip(spec.classes, silo.train.label_counts().tolist(), strict=True))
    logger.info("%s: %d training images, per class %s", name, len(silo.train), counts)
    return silo


def _train(model: LocalModel, config: RunConfig) -> None:
    goal = config.own_steps
    progress: Progress | None = None
    while not model.finished:
        training = model.train_slice(SLICE_SECONDS)
        values = {} if config.private else {"loss": training.losses[-1]}
        if progress is None:
            progress = Progress("training: step", goal, logger.info, interval=0.0, done=training.steps)
        progress.update(goal if model.finished else training.steps, **values)


def main(job: Path) -> int:
    """Run a job file: JSON with ``data-path``, ``silo-name``, ``out``, ``config`` and ``group-column``, and of a
    private training ``state-path`` and ``policy-path``, empty without a policy.
    """
    log_of_command()
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    given = json.loads(job.read_text(encoding="utf-8"))
    try:
        config = settle_base_model(RunConfig.from_run_config(given["config"]))
        out, group_column = Path(given["out"]), given.get("group-column", "")
        policy = given.get("policy-path", "")
        place = Place(Path(given["state-path"]), Path(policy) if policy else None) if "state-path" in given else None
        pretrain(Path(given["data-path"]), given["silo-name"], out, config, group_column, place)
    except UserError as error:
        logger.error("error: %s", error)
        return 2
    except KeyboardInterrupt:
        logger.error("interrupted: the same command continues where it stopped")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
