"""A silo's own diffusion model: trained in slices, kept on the silo's disk, found again by content."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from clients.copy_check import copied_share
from fedsynth import __version__
from fedsynth.config import RECIPES, RunConfig
from fedsynth.config.recipe import PAPER, recipe_name
from fedsynth.config.training import LORA
from fedsynth.data import Silo
from fedsynth.diffusion import (
    AUTOENCODER,
    MIN_HELD_OUT,
    Codec,
    EncodedImages,
    HeldOutLoss,
    TrainingState,
    check_steps,
    codec_of,
    exact_variants,
    initial_unet,
    lasting_scheduler,
    load_saved_network,
    loss_curve,
    model_seal,
    pick_device,
    save_model,
    start_of,
    train,
    train_early_stopping,
)
from fedsynth.diffusion.adapters import AdaptedUNet, load_adapters
from fedsynth.diffusion.denoiser import Denoiser
from fedsynth.errors import UserError
from fedsynth.files import atomic_directory, nonfinite_as_null, write_json
from fedsynth.locks import locked
from fedsynth.privacy import Mechanism
from fedsynth.privacy.dp_training import (
    mechanism_of,
    private_steps,
    private_training,
    secret_generator,
    train_privately,
)
from fedsynth.sealed import Seal, SealError, check_folder, seal_folder, sealed_json, unsealed_json
from fedsynth.seeding import make_generator
from fedsynth.spec import ImageSpec

logger = logging.getLogger("fedsynth")

_OF_BASE = ("base_model", "prompt", "train", "lora_rank", "lora_targets")
"""Keys of the network that act beside a base model alone."""

LOCK_SECONDS = 60.0
"""How much longer than its two slices to wait for another process that trains the same model."""


class LocalModel:
    """The model of one silo under one configuration.

    A finished model that is damaged, or another silo's, is set aside with a warning and trained again.

    Args:
        silo: the silo's images.
        spec: image format and classes of the run.
        config: model, training and recipe.
        state: the silo's own state folder.
        told_held_out: held-out images as the silo tells their number, by which early stopping and copy check act or
            not: where they did would tell the exact one. None: the exact number, which is told.
        told_images: training images as the silo tells their number; None: as they are.
        before_steps: called with the mechanism of a private training before its first step, and once for a training
            that continues from a checkpoint; whatever it raises, nothing is trained.
        codec: the run's, where it finds latents on a disk; None: the run's.

    Attributes:
        folder: finished model, a diffusers pipeline folder; its name is a hash of all that training depends on.
    """

    def __init__(
        self,
        silo: Silo,
        spec: ImageSpec,
        config: RunConfig,
        state: Path,
        told_held_out: int | None = None,
        told_images: int | None = None,
        before_steps: Callable[[Mechanism], None] = lambda mechanism: None,
        codec: Codec | None = None,
    ) -> None:
        self._silo = silo
        self._told_images = len(silo.train) if told_images is None else told_images
        self._before_steps = before_steps
        self._held_out = len(silo.holdout) if told_held_out is None or not len(silo.holdout) else told_held_out
        self._spec = spec
        self._config = config
        self._codec = codec or codec_of(config, spec)
        # Held-out images are images: what depends on their loss tells of them.
        self._stops_early = config.training.early_stop and self._held_out >= MIN_HELD_OUT and not config.private
        self.key = _content_key(silo, spec, config, self._codec, self._stops_early)
        self.folder = state / "models" / self.key
        self._checkpoint = state / "training" / f"{self.key}.pt"
        self._set_aside_if_damaged()

    @property
    def finished(self) -> bool:
        """Whether the trained model is on disk."""
        return (self.folder / "model_index.json").is_file()

    def history(self) -> dict[str, Any]:
        """Loss curve (``steps``, ``losses``) and ``seconds`` of the finished training.

        With early stopping also ``held-out-steps`` and ``held-out-losses`` of the checks, of which the lowest was kept.
        A private training has measured no losses: ``steps`` is its last alone, ``losses`` empty.
        """
        return dict(json.loads((self.folder / "training.json").read_text(encoding="utf-8")))

    def copied_share(self) -> float | None:
        """Share of near-copies among samples of the finished model, measured once; None if unasked or unknown."""
        if not self._config.training.copy_check or self._config.private:
            return None
        result = self.folder / "copy_check.json"
        # What was counted before images were compared as the autoencoder makes them, or mirrored and turned, is
        # counted again.
        guidance = self._config.sampling.guidance
        guided = f", guidance {guidance:g} from {self._config.sampling.guidance_source}" if guidance > 1 else ""
        varied = bool(exact_variants(self._config.training.augmentations()))
        seal = Seal("copy check", 1 + bool(self._codec.reconstruct) + 2 * varied, self.key + guided)
        try:
            share = unsealed_json(json.loads(result.read_text(encoding="utf-8")), seal, result)["copied-share"]
        except (FileNotFoundError, ValueError, TypeError, LookupError):
            network = load_own_network(self.folder, self._config, self._spec)
            share = copied_share(self._silo, network, self._spec, self._config, self._held_out)
            write_json(result, sealed_json({"copied-share": share}, seal))
        return None if share is None else float(share)

    def train_in_turn(self, seconds: float) -> TrainingState | None:
        """Do :meth:`train_slice` when no other process trains this model; None if another has finished it by then.

        Raises:
            InUseError: another has trained it for longer than two slices take.
        """
        lock = self._checkpoint.with_suffix(".lock")
        with locked(lock, f"the training of model '{self.folder}'", wait=2 * seconds + LOCK_SECONDS):
            training = None if self.finished else self.train_slice(seconds)
            if not self._checkpoint.exists():  # Finished: whoever takes the lock next finds the model.
                lock.unlink(missing_ok=True)
            return training

    def train_slice(self, seconds: float) -> TrainingState:
        """Train for about ``seconds``, then save: the finished model, or a checkpoint to continue from.

        Nothing stays in memory between slices, because the next one may run in another process.
        """
        start = time.monotonic()
        training = self._resume()
        ended = self._advance(training, deadline=start + seconds)
        training.seconds += time.monotonic() - start
        if ended:
            self._finish(training)
        else:
            training.save(self._checkpoint, self.key)
        return training

    def _advance(self, training: TrainingState, deadline: float) -> bool:
        config = self._config
        goal = config.own_steps
        images = EncodedImages(self._silo.train.images, self._codec, config.training.augmentations())
        labels = torch.from_numpy(self._silo.train.labels)
        if config.private:
            train_privately(training, images, labels, private_training(config, self._told_images), goal, deadline)
            return training.steps >= goal
        if not self._stops_early:
            if config.training.early_stop and not training.steps:
                count = self._held_out
                message = "%s: %d held-out images are too few to stop early by, which needs %d: raise holdout-fraction"
                logger.info(message, self._silo.name, count, MIN_HELD_OUT)
            train(training, images, labels, config.training, goal, deadline)
            return training.steps >= goal
        holdout = self._silo.holdout
        generator = make_generator(config.run.seed, "held-out-loss", self._silo.name)
        held_out_loss = HeldOutLoss(
            EncodedImages(holdout.images, self._codec), torch.from_numpy(holdout.labels), config.recipe, generator
        )
        return train_early_stopping(training, held_out_loss, images, labels, config.training, goal, deadline)

    def _resume(self) -> TrainingState:
        unet = initial_unet(self._config, self._spec).to(pick_device(self._config.run.device))
        seed, private = self._config.run.seed, self._config.private
        generator = secret_generator() if private else make_generator(seed, "local-training", self._silo.name)
        training = TrainingState(unet, self._config.recipe, generator, self._config.own_steps)
        resumed = training.resume(self._checkpoint, self._silo.name, self.key)
        if private and not resumed:
            # All steps are accounted for before the first, and the checkpoint says so from then on.
            self._before_steps(replace(mechanism_of(self._config), steps=self._config.own_steps))
            training.save(self._checkpoint, self.key)
        return training

    def _finish(self, training: TrainingState) -> None:
        scheduler = lasting_scheduler(self._config.recipe, bound=self._codec.bound)
        history: dict[str, Any] = {"seconds": training.seconds}
        if self._config.private:
            history |= {"steps": [float(training.steps)], "losses": []}
        else:
            history |= loss_curve(training.losses)
        if training.held_out_losses:
            history |= self._checks(training)
        with atomic_directory(self.folder) as temporary:
            averaged = training.averaged_unet()
            save_model(temporary, averaged, scheduler, self._codec, self._spec.classes, with_base=False)
            write_json(temporary / "training.json", history)
            seal_folder(temporary, model_seal(self.key))
        self._checkpoint.unlink(missing_ok=True)

    def _set_aside_if_damaged(self) -> None:
        if not self.finished:
            return
        try:
            check_folder(self.folder, model_seal(self.key))
        except SealError as error:
            aside = self.folder.with_name(f"{self.key}.damaged")
            message = "%s: model '%s' cannot be used (%s): it is trained again, and this one is now '%s'"
            logger.warning(message, self._silo.name, self.folder, error, aside.name)
            shutil.rmtree(aside, ignore_errors=True)
            self.folder.rename(aside)

    def _checks(self, training: TrainingState) -> dict[str, Any]:
        goal = self._config.own_steps
        losses = training.held_out_losses
        steps = check_steps(goal)[: len(losses)]
        kept = steps[losses.index(min(losses))]
        message = "%s: training ended at step %d of %d, weights of step %d kept (held-out loss %.4g)"
        logger.info(message, self._silo.name, training.steps, goal, kept, min(losses))
        return {"held-out-steps": [float(step) for step in steps], "held-out-losses": nonfinite_as_null(losses)}


def load_network(folder: Path, device: torch.device, begun: Denoiser | None = None) -> Denoiser:
    """Load the network of a finished model, whose key is the name of its folder.

    Args:
        folder: of the model.
        device: where to.
        begun: the network as its training began, which takes what was trained; None: the folder says all of it.

    Raises:
        UserError: the folder is damaged, or holds another model.
    """
    try:
        check_folder(folder, model_seal(folder.name))
        if isinstance(begun, AdaptedUNet):
            network: Denoiser = load_adapters(folder, begun)
        else:
            network = load_saved_network(folder)
            if begun is not None:
                begun.load_state_dict(network.state_dict())
                network = begun
    except (OSError, ValueError) as error:
        raise UserError(f"model '{folder}' is damaged: remove the folder to train it again ({error})") from error
    return network.to(device)


def load_own_network(folder: Path, config: RunConfig, spec: ImageSpec) -> Denoiser:
    """Do the same for a run, of adapters with its base model.

    Raises:
        UserError: as :func:`load_network`, or the base model cannot be used.
    """
    begun = initial_unet(config, spec) if config.model.base_model else None
    return load_network(folder, pick_device(config.run.device), begun)


def _content_key(silo: Silo, spec: ImageSpec, config: RunConfig, codec: Codec, stops_early: bool) -> str:
    # The same training is found again, whichever of the two keys says how long it is.
    training = config.training.model_dump(exclude={"local_steps", "early_stop", "copy_check"})
    training["train_steps"] = config.own_steps
    training = {name: value for name, value in training.items() if value or name not in ("augment", "label_dropout")}
    # With model = auto the recipe's name decides the network.
    called = recipe_name(config.to_run_config())
    recipe = {**config.recipe.model_dump(), "codec": codec.name, "name": called}
    # What was a key of the training or of the noise before there were recipes stands where it stood.
    training |= {name: recipe.pop(name) for name in ("learning_rate", "ema_decay")}
    schedule = {name: recipe.pop(name) for name in ("num_train_timesteps", "beta_start", "beta_end")}
    paper = {**RECIPES[PAPER].model_dump(), "name": PAPER}
    content = {
        "fedsynth": __version__,
        "silo": silo.name,
        "data": silo.fingerprint,
        "spec": [spec.channels, spec.size, *spec.classes],
        "dataset": config.data.dataset,
        "seed": config.run.seed,
        "model": config.model.model_dump(exclude={"recipe", "autoencoder", "init_from", *_OF_BASE}),
        "training": training,
        "diffusion": schedule,
    }
    if changes := {name: value for name, value in recipe.items() if value != paper[name]}:
        content["recipe"] = changes
    if config.recipe.prediction == "x0":
        # Models from before errors beyond black and white were free are others.
        content["errors"] = "clipped"
    if codec.name == AUTOENCODER:
        content["codec"] = codec.digest
    if (start := start_of(config)) is not None:
        content["start"] = start.digest
    if config.model.base_model:
        content["prompt"] = config.model.prompt
    if config.model.train == LORA:
        content["adapters"] = [config.model.lora_rank, config.model.lora_targets]
    if config.private:
        content["privacy"] = {**config.privacy.model_dump(), "steps": private_steps(config)}
    # Where it changes nothing, the same model serves with and without.
    if stops_early:
        content["early-stop"] = True
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
