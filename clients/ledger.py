"""What a real silo has answered so far, in each run and in all: a file in its state folder, which outlives runs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from fedsynth.files import write_json
from fedsynth.ledger import LEDGER_FORMAT, Counts, Sums, read_ledger
from fedsynth.locks import locked

MOST_RUNS = 1000
"""Runs whose counts are kept, the last ones: an earlier one is over."""
LOCK_SECONDS = 10.0


class Ledger:
    """Counts by run and in all; every change is on the disk before it is acted on.

    Args:
        path: the file; made with the first change. Whoever removes it gives the silo's answers away anew.

    Attributes:
        path: as given.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def counts(self, run: str) -> tuple[Counts, Counts]:
        """Return what was counted in a run, and in all runs together.

        Raises:
            UserError: the file is damaged.
        """
        sums = read_ledger(self.path)
        return sums.runs.get(run, {}), sums.in_all

    def add(self, run: str, counts: Mapping[str, float], most: Mapping[str, tuple[float, float]]) -> str | None:
        """Add counts, unless a sum would be above its limit.

        Args:
            run: whose.
            counts: what to add.
            most: the largest sum in the run, and in all runs, of every count.

        Returns:
            None if they were added; otherwise the count that is above its limit.

        Raises:
            UserError: the file is damaged or cannot be written.
        """
        with self._alone():
            sums = read_ledger(self.path)
            in_run = sums.runs.pop(run, {})
            for name, value in counts.items():
                for counted, limit in zip((in_run, sums.in_all), most[name], strict=True):
                    counted[name] = counted.get(name, 0) + value
                    if counted[name] > limit:
                        return name
            self._write(sums, run, in_run)
        return None

    def first(self, run: str, name: str, value: int) -> float:
        """Return what was first kept of a run under a name, other than its counts; ``value`` is, if nothing was.

        Raises:
            UserError: the file is damaged or cannot be written.
        """
        kept, _ = self.counts(run)
        if name not in kept:
            with self._alone():
                sums = read_ledger(self.path)
                kept = {name: value, **sums.runs.pop(run, {})}
                self._write(sums, run, kept)
        return kept[name]

    def _alone(self) -> AbstractContextManager[None]:
        return locked(self.path.with_suffix(".lock"), f"ledger '{self.path}'", wait=LOCK_SECONDS)

    def _write(self, sums: Sums, run: str, in_run: Counts) -> None:
        runs = dict([*sums.runs.items(), (run, in_run)][-MOST_RUNS:])
        write_json(self.path, {"format": LEDGER_FORMAT, "in-all": sums.in_all, "runs": runs})
