"""TensorBoard: event files in the run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter

from fedsynth.config import Scalar

FOLDER = "tensorboard"
"""Folder of the event files, in the run folder."""


class TensorBoard:
    """Writes event files; a run that continues adds one beside those it has. Arguments as of :func:`begin`."""

    def __init__(self, folder: Path, run_id: str) -> None:
        self.run_id = run_id or folder.name
        self._writer = SummaryWriter(str(folder / FOLDER))

    def settings(self, values: Mapping[str, Scalar]) -> None:
        """Write them as a table of text."""
        rows = "\n".join(f"| {key} | `{value}` |" for key, value in values.items())
        self._writer.add_text("settings", f"| key | value |\n|---|---|\n{rows}")
        self._writer.flush()

    def numbers(self, values: Mapping[str, float], server_round: int) -> None:
        """Write one scalar each."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, server_round)
        self._writer.flush()

    def curve(self, name: str, points: Sequence[tuple[int, float]]) -> None:
        """Write one scalar a point."""
        for step, value in points:
            self._writer.add_scalar(name, value, step)

    def picture(self, name: str, image: NDArray[np.uint8], server_round: int) -> None:
        """Write an image."""
        self._writer.add_image(name, image, server_round, dataformats="HWC")

    def results(self, values: Mapping[str, float]) -> None:
        """Write one scalar each, at step 0."""
        self.numbers(values, 0)

    def file(self, path: Path) -> None:
        """Write where it lies: TensorBoard keeps no files."""
        self._writer.add_text(path.name, f"`{path.name}` lies in the run folder, above the event files.")

    def close(self, finished: bool) -> None:
        """Write what is left; event files have no word for a failure."""
        self._writer.close()


def begin(folder: Path, run_id: str) -> TensorBoard:
    """As :func:`fedsynth.tracking.open_tracker`."""
    return TensorBoard(folder, run_id)
