"""Experiment trackers: what each is told about a run, in its own words; none is imported unless it is chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fedsynth.config import Scalar
from fedsynth.config.types import NONE
from fedsynth.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PACKAGES = {"tensorboard": "tensorboard", "mlflow": "mlflow", "wandb": "wandb", "trackio": "trackio"}
"""The package that each needs; the extra of fedsynth that brings it has the tracker's own name."""
PROJECT = "fedsynth"
"""Experiment of MLflow and project of Weights & Biases and Trackio, unless their own variables name another."""


class Tracker(Protocol):
    """One run at a tracker. Any method may raise what the tracker's package raises.

    Attributes:
        run_id: by which the tracker knows the run, for continuing it.
    """

    run_id: str

    def settings(self, values: Mapping[str, Scalar]) -> None:
        """Say the settings by key; those of a run that continues may be others."""

    def numbers(self, values: Mapping[str, float], server_round: int) -> None:
        """Add a point to the curves of these names."""

    def curve(self, name: str, points: Sequence[tuple[int, float]]) -> None:
        """Add a whole curve over training steps."""

    def picture(self, name: str, image: NDArray[np.uint8], server_round: int) -> None:
        """Add a picture (H, W, 3)."""

    def results(self, values: Mapping[str, float]) -> None:
        """Say the numbers that the run ended with."""

    def file(self, path: Path) -> None:
        """Keep a copy of a file, or say where it lies if the tracker keeps none."""

    def close(self, finished: bool) -> None:
        """End, as finished or as failed; a run that failed may be continued."""


def check_tracker(name: str) -> None:
    """Look for the package of a tracker, without importing it.

    Args:
        name: the key ``tracker``.

    Raises:
        UserError: it is not installed; names the extra that brings it.
    """
    if name != NONE and find_spec(PACKAGES[name]) is None:
        raise UserError(
            f"tracker = '{name}': the package '{PACKAGES[name]}' is not installed: pip install 'fedsynth[{name}]', or"
            f" set tracker = '{NONE}'"
        )


def open_tracker(name: str, folder: Path, run_id: str) -> Tracker:
    """Begin a run at a tracker, or continue one.

    Args:
        name: one of :data:`PACKAGES`.
        folder: the run's, after whose name the tracker calls the run.
        run_id: the tracker's of a run that continues; empty: it begins.

    Raises:
        Exception: whatever the tracker's package raises where it does not let the run begin.
    """
    module: Any = import_module(f"{__name__}.{name}_tracker")
    tracker: Tracker = module.begin(folder, run_id)
    return tracker
