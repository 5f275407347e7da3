"""Where the time of a run goes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

Phase = Literal["start", "training", "rounds", "sampling", "generator", "evaluation", "report"]
"""``start``: until the silos are met. ``training``: of the silos' own models, with calibration. ``rounds``: of the
strategy; in averaging they are the training, in ``pooled`` and ``local`` the silos' sampling. ``sampling``: from the
last round to dataset and model on disk. ``generator``: training it on the server, and saving it.
``evaluation``: measuring. ``report``: the page and its pictures."""


class Phases:
    """A stopwatch with one phase running at a time, the first from its making.

    Args:
        clock: seconds from any beginning.
    """

    def __init__(self, first: Phase = "start", clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._running: Phase = first
        self._since = clock()
        self._ended: dict[Phase, float] = {}

    def enter(self, phase: Phase) -> None:
        """End the phase that runs, and begin another, or go on with it."""
        now = self._clock()
        self._ended[self._running] = self._ended.get(self._running, 0.0) + now - self._since
        self._running, self._since = phase, now

    def seconds(self) -> dict[str, float]:
        """Seconds of every phase so far, in the order in which they began; without the time since the last change."""
        return {str(phase): spent for phase, spent in self._ended.items()}

    def so_far(self) -> dict[str, float]:
        """Seconds of every phase, with those of the one that runs."""
        self.enter(self._running)
        return self.seconds()
