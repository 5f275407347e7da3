"""The amortised generator: one model on the server that draws more images after the silos have left.

Cooperative inference needs every silo for every image. Its paper (Hahn & Lee, NeurIPS 2025) names a model distilled
from it as future work; how it is trained is our choice: on the released images, as a silo's own model is on real ones.
It reveals no more of real images than the released ones do, since it sees nothing else.
"""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedsynth.config import RunConfig
from fedsynth.diffusion import EncodedImages, TrainingState, codec_of, train
from fedsynth.diffusion.denoiser import Denoiser
from fedsynth.disk import explained_writing
from fedsynth.progress import Progress
from fedsynth.seeding import make_generator
from strategies.base import Outcome, Task
from strategies.global_model import draw_images, new_training

logger = logging.getLogger("fedsynth")

FOLDER, PURPOSE = "generator", "generator-training"
SAMPLER = "dpmsolver++"
"""Whatever the set was drawn with: ten moves with noise narrow a distribution, and the set was drawn with such."""
SAVE_SECONDS = 30.0
"""Training lost to a crash at most; writing the state of a paper-size network takes about a second."""


@dataclass(frozen=True, eq=False)
class Generator:
    """A finished generator.

    Attributes:
        unet: with the averaged weights.
        steps: optimiser steps made.
        seconds: time they took, with those before an interruption.
    """

    unet: Denoiser
    steps: int
    seconds: float

    def cost(self) -> dict[str, float]:
        """Return what it cost by kebab-case name, on top of the method's own."""
        return {"generator-steps": self.steps, "generator-seconds": self.seconds}

    def draw(self, task: Task, labels: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Draw an image uint8 (H, W, C) for each of ``labels`` (n,), from other noise than the released set's."""
        generator = make_generator(task.config.run.seed, "generator-sampling")
        noise = torch.randn((len(labels), *codec_of(task.config, task.spec).shape), generator=generator)
        return draw_images(task, self.unet, noise, torch.from_numpy(labels), generator, sampler=SAMPLER)


def generator_note(config: RunConfig) -> tuple[str, ...]:
    """Say in the card and the report that there is a generator."""
    steps = config.sampling.generator_steps
    note = f"further images can be drawn from models/{FOLDER}, trained for {steps} steps on these images alone"
    return (note,) if steps else ()


def train_generator(task: Task, outcome: Outcome, checkpoints: Path) -> Generator | None:
    """Train a class-conditional U-Net, like a silo's own, on the images of ``outcome`` and on nothing else.

    Every 30 s the state goes to ``checkpoints``; a run that continues with the same images goes on from there, bit for
    bit on a CPU, and more steps continue a finished training unless they change the learning rate of those before.

    Returns:
        None where ``generator-steps`` asks for none.

    Raises:
        UserError: ``checkpoints`` cannot be written.
    """
    goal = task.config.sampling.generator_steps
    if not goal:
        return None
    path = checkpoints / f"generator-{_fingerprint(outcome)}.pt"
    state = new_training(task, PURPOSE, goal)
    state.resume(path, FOLDER, path.stem)
    if state.steps > goal or not state.on_schedule:  # of an earlier training of another length
        state = new_training(task, PURPOSE, goal)
    logger.info("training the generator on the %d images of the set", len(outcome.images))
    images = EncodedImages(outcome.images, codec_of(task.config, task.spec))
    _train(state, images, torch.from_numpy(outcome.labels), task.config, path)
    return Generator(state.averaged_unet(), state.steps, state.seconds)


def _train(state: TrainingState, images: EncodedImages, labels: torch.Tensor, config: RunConfig, path: Path) -> None:
    goal = config.sampling.generator_steps
    progress = Progress("generator: step", goal, logger.info, done=state.steps)

    def report(done: int, loss: float) -> None:
        progress.update(done, loss=loss)

    while state.steps < goal:
        start = time.monotonic()
        train(state, images, labels, config.training, goal, start + SAVE_SECONDS, report)
        state.seconds += time.monotonic() - start
        with explained_writing(path):
            state.save(path, path.stem)


def _fingerprint(outcome: Outcome) -> str:
    content = hashlib.sha256(np.ascontiguousarray(outcome.images).tobytes())
    content.update(outcome.labels.tobytes())
    return content.hexdigest()[:16]
