"""Telling an experiment tracker how a run goes: the key ``tracker``."""

from __future__ import annotations

import contextlib
import io
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord
from numpy.typing import NDArray
from PIL import Image

from fedsynth.config import Scalar
from fedsynth.config.types import NONE
from fedsynth.errors import UserError
from fedsynth.output import RunFolder, image_grid, png_bytes
from fedsynth.text import folder_of_name, printable
from fedsynth.tracking import Tracker, open_tracker
from strategies.base import SynthesisStrategy, Task

logger = logging.getLogger("fedsynth")

PICTURE_ROUNDS = 10
"""Every how many rounds there is a picture; in longer runs so many that there are about ten."""
_MOST_PICTURES, _PER_CLASS, _MOST_CLASSES, _LONGEST_REASON = 10, 4, 10, 300


class Tracking:
    """What a run says to its tracker, and a note in its folder of what was said.

    A tracker that fails is warned of once, and the run goes on without it.

    Args:
        folder: the run's.
        name: the key ``tracker``.

    Raises:
        UserError: the tracker does not let the run begin.
    """

    def __init__(self, folder: RunFolder, name: str) -> None:
        self._folder, self._name = folder, name
        self._tracker: Tracker | None = None
        self._rounds = 0
        if name == NONE:
            return
        note = folder.read_tracker()
        known = note if note.get("tracker") == name else {}
        try:
            self._tracker = open_tracker(name, folder.path, str(known.get("run-id", "")))
        except Exception as error:
            raise UserError(
                f"tracker = '{name}' does not let the run begin: {_reason(error)}; mend that, or set tracker = '{NONE}'"
            ) from error
        self._rounds = int(known.get("rounds", 0))
        self._note()

    def settings(self, values: Mapping[str, Scalar]) -> None:
        """Say the settings, and rounds that are done already and that the tracker does not know."""
        self._tell(lambda tracker: tracker.settings(values))
        if self._tracker is not None:
            for row in self._folder.read_metrics():
                self.round(row)

    def round(self, row: Mapping[str, Any]) -> None:
        """Say what ``metrics.jsonl`` has of a round; one that the tracker knows is not said again."""
        number = int(row["round"])
        if self._tracker is None or number <= self._rounds:
            return
        self._tell(lambda tracker: tracker.numbers(_curves(row), number))
        if self._tracker is not None:
            self._rounds = number
            self._note()

    def picture(self, strategy: SynthesisStrategy, task: Task, number: int, arrays: ArrayRecord) -> None:
        """Show some images as they are after a round, every tenth."""
        every = max(PICTURE_ROUNDS, math.ceil(strategy.num_rounds / _MOST_PICTURES))
        if self._tracker is None or number % every:
            return

        def show(tracker: Tracker) -> None:
            rows = _shown_rows(task)
            images = strategy.preview(task, arrays, rows)
            if images is not None:
                tracker.picture("images", _grid(images, task.labels[rows].numpy(), task.spec.classes), number)

        self._tell(show)

    def finish(self, curves: Mapping[str, Sequence[tuple[int, float]]]) -> None:
        """Say how the run ended.

        Args:
            curves: (training step, loss) by name.
        """

        def say(tracker: Tracker) -> None:
            for name, points in curves.items():
                tracker.curve(f"training/{folder_of_name(name)}/loss", points)
            tracker.results(dict(_numbers("results", self._folder.read_results() or {})))
            tracker.file(self._folder.report)

        self._tell(say)

    def close(self, finished: bool) -> None:
        """End at the tracker, too."""
        self._tell(lambda tracker: tracker.close(finished))

    def _tell(self, say: Callable[[Tracker], None]) -> None:
        if self._tracker is None:
            return
        try:
            say(self._tracker)
        except Exception as error:
            self._tracker = None
            logger.warning(
                "tracker = '%s' has failed: %s; the run goes on, and tells it nothing more", self._name, _reason(error)
            )

    def _note(self) -> None:
        assert self._tracker is not None
        note = {"tracker": self._name, "run-id": self._tracker.run_id, "rounds": self._rounds}
        self._folder.write_tracker(note)


@contextlib.contextmanager
def tracked(folder: RunFolder, name: str) -> Iterator[Tracking]:
    """Track the run while the block runs, see :class:`Tracking`."""
    tracking = Tracking(folder, name)
    try:
        yield tracking
    except BaseException:
        tracking.close(False)
        raise
    tracking.close(True)


def _curves(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a row of ``metrics.jsonl`` by the name of their curve."""
    own = {key: value for key, value in row.items() if key not in ("round", "attendance")}
    return dict([*_numbers("round", own), *_numbers("silo", row.get("attendance", {}))])


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """Yield the finite numbers in a tree of mappings, by the names on the way joined with ``/``."""
    if isinstance(value, Mapping):
        for key, below in value.items():
            yield from _numbers(f"{name}/{folder_of_name(str(key))}", below)
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        yield name, float(value)


def _shown_rows(task: Task) -> torch.Tensor:
    """Return the first rows of the set of each of the first classes, int64 (n,)."""
    found = [torch.nonzero(task.labels == label).flatten()[:_PER_CLASS] for label in range(_MOST_CLASSES)]
    return torch.cat(found)


def _grid(images: NDArray[np.uint8], labels: NDArray[np.int64], classes: Sequence[str]) -> NDArray[np.uint8]:
    """Return a picture (H, W, 3) with a row for every class."""
    picture = png_bytes(image_grid(images, labels, classes[:_MOST_CLASSES], _PER_CLASS))
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))


def _reason(error: Exception) -> str:
    return printable(str(error).strip().partition("\n")[0], _LONGEST_REASON) or type(error).__name__
