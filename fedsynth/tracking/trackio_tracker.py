"""Trackio: a database beside the run folders, or the server or Space that its own variables name."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedsynth.config import Scalar
from fedsynth.tracking import PROJECT

FOLDER, PROJECT_NAME = "TRACKIO_DIR", "TRACKIO_PROJECT"
DATABASE = "trackio"
"""Folder of the database beside the run folders, unless ``TRACKIO_DIR`` names another."""


class Trackio:
    """Writes one run of a project. Arguments as of :func:`begin`.

    Raises:
        RuntimeError: a run that continues is not the latest of its name there.
    """

    def __init__(self, folder: Path, run_id: str) -> None:
        # Read once, when the package is imported.
        os.environ.setdefault(FOLDER, str(folder.parent / DATABASE))
        import trackio

        self._images = trackio.Image
        # What it prints on the way are hints for somebody who called it.
        with redirect_stdout(StringIO()):
            self._run = trackio.init(
                project=os.environ.get(PROJECT_NAME, PROJECT),
                name=folder.name,
                resume="must" if run_id else "never",
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )
        self.run_id = str(self._run.id)
        if run_id not in ("", self.run_id):
            raise RuntimeError(f"the latest run {folder.name} there is {self.run_id}, not {run_id}")
        self._run.config.pop("_Username", None)

    def settings(self, values: Mapping[str, Scalar]) -> None:
        """Write the configuration; it is stored with the next numbers."""
        self._run.config.update(values)

    def numbers(self, values: Mapping[str, float], server_round: int) -> None:
        """Write one line of history."""
        self._run.log(dict(values), step=server_round)

    def curve(self, name: str, points: Sequence[tuple[int, float]]) -> None:
        """Write one line of history a point."""
        for step, value in points:
            self._run.log({name: value}, step=step)

    def picture(self, name: str, image: NDArray[np.uint8], server_round: int) -> None:
        """Write an image."""
        self._run.log({name: self._images(image)}, step=server_round)

    def results(self, values: Mapping[str, float]) -> None:
        """Write one line of history, at step 0."""
        self.numbers(values, 0)

    def file(self, path: Path) -> None:
        """Keep a copy as an artefact of the run."""
        self._run.log_artifact(path, name=path.name, type=path.stem)

    def close(self, finished: bool) -> None:
        """Write what is left; it has no word for a failure."""
        with redirect_stdout(StringIO()):
            self._run.finish()


def begin(folder: Path, run_id: str) -> Trackio:
    """As :func:`fedsynth.tracking.open_tracker`."""
    return Trackio(folder, run_id)
