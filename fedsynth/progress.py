"""Progress of long work: one line every few seconds, readable on a terminal and in a log file alike."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import TypeVar

Item = TypeVar("Item")

SLICE_SECONDS = 15.0
"""Seconds that a silo trains before it says how far it is."""
WINDOW_SECONDS = 60.0
"""Time left follows the speed of the last minute: the first steps of a network are slow, and machines are shared."""
_RESOLUTION = 1.0


class Progress:
    """Write ``label 320/900 (36 %), loss 0.081, 1 min 20 s left`` now and then.

    Args:
        label: what is going on.
        total: units of work in all.
        write: receives each line, such as ``logger.info``.
        interval: least number of seconds between two lines; the last unit is always reported.
        done: units already done when the work starts, left out of the speed, which is that of the last minute.
    """

    def __init__(
        self, label: str, total: int, write: Callable[[str], None], interval: float = 5.0, done: int = 0
    ) -> None:
        self.label, self.total, self.write, self.interval = label, total, write, interval
        self._start = self._last = time.monotonic()
        self._passed = deque([(self._start, done)])

    def update(self, done: int, **values: float) -> None:
        """Report that ``done`` of ``total`` units are finished, with the latest ``values`` (loss, ...)."""
        now = time.monotonic()
        self._note(now, done)
        if done < self.total and now - self._last < self.interval:
            return
        self._last = now
        parts = [f"{self.label} {done}/{self.total} ({100 * done // self.total} %)"]
        parts += [f"{name.replace('_', ' ')} {value:.4g}" for name, value in values.items()]
        self.write(", ".join([*parts, self._time(done, now)]))

    def _note(self, now: float, done: int) -> None:
        """Keep what was done when for the last minute, and the last of what was before."""
        if now - self._passed[-1][0] >= _RESOLUTION:
            self._passed.append((now, done))
        while len(self._passed) > 1 and now - self._passed[1][0] >= WINDOW_SECONDS:
            self._passed.popleft()

    def _time(self, done: int, now: float) -> str:
        if done >= self.total:
            return f"took {duration(now - self._start)}"
        since, before = self._passed[0]
        if done <= before or now <= since:
            return "time left unknown"
        return f"{duration((now - since) / (done - before) * (self.total - done))} left"


def followed(items: Sequence[Item], label: str, write: Callable[[str], None]) -> Iterator[Item]:
    """Yield ``items`` and write now and then how far it is; nothing of work that is done before the first line."""
    progress = Progress(label, len(items), write)
    for done, item in enumerate(items):
        if done:
            progress.update(done)
        yield item


def duration(seconds: float) -> str:
    """Format seconds for people: ``850 ms``, ``12 s``, ``3 min 05 s``, ``2 h 10 min``."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def ago(moment: datetime, now: datetime) -> str:
    """Say how long ago a moment was, as :func:`duration`; one that is yet to come, by another clock, was now."""
    return f"{duration(max((now - moment).total_seconds(), 0.0))} ago"
