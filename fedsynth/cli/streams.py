"""What the commands print, on whatever it is printed: terminals that lack letters, readers that go away."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable

BROKEN_PIPE = 141
"""Exit status of a program whose reader has gone: 128 + SIGPIPE, as shells say it."""


def replace_what_cannot_be_shown() -> None:
    """Have letters that the terminal's encoding lacks printed as their numbers, instead of ending at them."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def ending_with_its_reader(act: Callable[[], int]) -> int:
    """Return what ``act`` returns, or :data:`BROKEN_PIPE`, quietly, if nobody reads on, as in ``fedsynth … | head``."""
    try:
        try:
            return act()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more when it ends, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
