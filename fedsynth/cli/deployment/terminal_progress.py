"""What a run says on a terminal: its counted lines as one bar that moves, all others above it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_COUNTED = re.compile(
    r"fedsynth \d\d:\d\d:\d\d (?P<label>.+) (?P<done>\d{1,12})/(?P<total>\d{1,12}) \(\d+ %\)(?:, (?P<rest>.*))?"
)
"""A line of :class:`fedsynth.progress.Progress`, as :func:`fedsynth.logs.log_to_stderr` prints it."""


@contextmanager
def printer() -> Iterator[Callable[[str], None]]:
    """Yield what prints a line with its end, or nothing.

    With a bar on a terminal; in a file, a pipe or a dumb terminal every line as it is.
    """
    if not sys.stdout.isatty() or os.environ.get("TERM", "dumb") in ("dumb", "unknown"):
        yield lambda text: print(text, end="", flush=True)
        return
    # Here: commands that show no bar would wait for it.
    from rich.console import Console

    bars = BarPrinter(Console())
    try:
        yield bars.print
    finally:
        bars.clear()


class BarPrinter:
    """Prints lines above a bar, which shows the last of those that count, until the count is full.

    Args:
        console: rich's, on a terminal.
    """

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        self._console = console
        # No thread draws it: it moves when there is a line.
        self._progress = Progress(
            TextColumn("{task.description} {task.completed:.0f}/{task.total:.0f}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[rest]}", markup=False),
            console=console,
            transient=True,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def print(self, text: str) -> None:
        """Show a line with its end; of no text nothing."""
        line = text.removesuffix("\n")
        found = _COUNTED.fullmatch(line)
        if not text:
            return
        if found is None:
            self._above(line)
        elif int(found["done"]) < int(found["total"]):
            self._move(found["label"], int(found["done"]), int(found["total"]), found["rest"] or "")
        else:
            self.clear()
            self._above(line)

    def clear(self) -> None:
        """Take the bar away, and give the cursor back."""
        self._progress.stop()
        for task in self._progress.task_ids:
            self._progress.remove_task(task)

    def _above(self, line: str) -> None:
        self._console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def _move(self, label: str, done: int, total: int, rest: str) -> None:
        if [task.description for task in self._progress.tasks] != [label]:
            self.clear()
            self._progress.add_task(label, completed=done, total=total, rest=rest)
            self._progress.start()
        else:
            self._progress.update(self._progress.task_ids[0], completed=done, total=total, rest=rest)
            self._progress.refresh()
