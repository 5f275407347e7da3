"""What a real silo has answered so far, in each run and in all: a file in its state folder, which outlives runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from fedsynth.errors import UserError
from fedsynth.files import damage_named, write_json
from fedsynth.locks import locked

FORMAT = 1
MOST_RUNS = 1000
"""Runs whose counts are kept, the last ones: an earlier one is over."""
LOCK_SECONDS = 10.0

Counts = dict[str, float]


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
        content = self._read()
        return dict(content["runs"].get(run, {})), dict(content["in-all"])

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
            content = self._read()
            in_run, in_all = content["runs"].pop(run, {}), content["in-all"]
            for name, value in counts.items():
                for sums, limit in zip((in_run, in_all), most[name], strict=True):
                    sums[name] = sums.get(name, 0) + value
                    if sums[name] > limit:
                        return name
            self._write(content, run, in_run)
        return None

    def first(self, run: str, name: str, value: int) -> float:
        """Return what was first kept of a run under a name, other than its counts; ``value`` is, if nothing was.

        Raises:
            UserError: the file is damaged or cannot be written.
        """
        kept, _ = self.counts(run)
        if name not in kept:
            with self._alone():
                content = self._read()
                in_run = content["runs"].pop(run, {})
                kept = {name: value, **in_run}
                self._write(content, run, kept)
        return kept[name]

    def _alone(self) -> AbstractContextManager[None]:
        return locked(self.path.with_suffix(".lock"), f"ledger '{self.path}'", wait=LOCK_SECONDS)

    def _write(self, content: dict[str, Any], run: str, in_run: Counts) -> None:
        content["runs"] = dict([*content["runs"].items(), (run, in_run)][-MOST_RUNS:])
        write_json(self.path, content)

    def _read(self) -> dict[str, Any]:
        if not self.path.exists():
            return {"format": FORMAT, "in-all": {}, "runs": {}}
        with damage_named(self.path, "lets all be asked again"):
            content = json.loads(self.path.read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise UserError(
                    f"'{self.path}' has format {content['format']!r}, this fedsynth reads {FORMAT}: install the version"
                    " that wrote it"
                )
            for sums in (content["in-all"], *content["runs"].values()):
                if not all(isinstance(value, int | float) and value >= 0 for value in sums.values()):
                    raise ValueError("a count is no number")
            return dict(content)
