"""Weights & Biases: its server, one of one's own, or with ``WANDB_MODE=offline`` a folder in the run folder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import wandb
from numpy.typing import NDArray

from fedsynth.config import Scalar
from fedsynth.tracking import PROJECT

ROUND, STEP = "round", "training-step"


class WeightsAndBiases:
    """Writes one run of a project. Arguments as of :func:`begin`."""

    def __init__(self, folder: Path, run_id: str) -> None:
        # Neither the machine, its user and paths, nor what the program prints.
        quiet = wandb.Settings(
            console="off",
            disable_git=True,
            save_code=False,
            x_disable_meta=True,
            x_disable_stats=True,
            silent=True,
            host="",
        )
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=folder.name,
            id=run_id or None,
            resume="allow",
            dir=str(folder),
            settings=quiet,
        )
        self.run_id = str(self._run.id)
        self._run.define_metric(f"{ROUND}/*", step_metric=ROUND)
        self._run.define_metric("silo/*", step_metric=ROUND)
        self._run.define_metric("training/*", step_metric=STEP)

    def settings(self, values: Mapping[str, Scalar]) -> None:
        """Write the configuration."""
        self._run.config.update(dict(values), allow_val_change=True)

    def numbers(self, values: Mapping[str, float], server_round: int) -> None:
        """Write one line of history."""
        self._run.log({**values, ROUND: server_round})

    def curve(self, name: str, points: Sequence[tuple[int, float]]) -> None:
        """Write one line of history a point."""
        for step, value in points:
            self._run.log({name: value, STEP: step})

    def picture(self, name: str, image: NDArray[np.uint8], server_round: int) -> None:
        """Write an image."""
        self._run.log({name: wandb.Image(image), ROUND: server_round})

    def results(self, values: Mapping[str, float]) -> None:
        """Write the summary."""
        self._run.summary.update(dict(values))

    def file(self, path: Path) -> None:
        """Keep a copy as an artefact of the run."""
        artefact = wandb.Artifact(f"{path.stem}-{self.run_id}", type=path.stem)
        artefact.add_file(str(path))
        self._run.log_artifact(artefact)

    def close(self, finished: bool) -> None:
        """Send what is left."""
        self._run.finish(exit_code=0 if finished else 1)


def begin(folder: Path, run_id: str) -> WeightsAndBiases:
    """As :func:`fedsynth.tracking.open_tracker`."""
    return WeightsAndBiases(folder, run_id)
