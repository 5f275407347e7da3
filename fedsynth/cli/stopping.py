"""Signals that tell a command to stop: it cleans up first, and a second one ends it at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, a request to end (as of systemd or ``kill``), and a terminal that was closed."""

SIGNALLED = 128
"""Exit statuses above it say which signal has stopped a program: its number is added."""


class StoppedError(KeyboardInterrupt):
    """A signal told the command to stop.

    Attributes:
        number: of the signal.
        said: the command's last line; empty if there is nothing to say but that it was stopped.
    """

    def __init__(self, number: int, said: str = "") -> None:
        super().__init__(number)
        self.number, self.said = number, said

    @property
    def name(self) -> str:
        """Such as ``SIGTERM``."""
        return signal.Signals(self.number).name

    def __str__(self) -> str:
        return f"stopped by {self.name}{f': {self.said}' if self.said else ''}"


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Raise :class:`StoppedError` where the block is when the first of :data:`SIGNALS` arrives; exit at the second.

    SIGINT counts even where it was ignored before, as shells have it for what they start in the background. SIGHUP
    does not: whoever starts a command with ``nohup`` wants it to outlive the terminal. Children that are forked out of
    the block have the signals' defaults.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    process, told = os.getpid(), 0

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal told
        if os.getpid() != process:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif told:
            os._exit(SIGNALLED + number)
        else:
            told = number
            raise StoppedError(number)

    with handled_by(stop):
        yield
        if told:  # Python drops exceptions that are raised within a destructor.
            raise StoppedError(told)


@contextmanager
def handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Have ``handler`` called for :data:`SIGNALS` while the block runs, for SIGHUP only where it was not ignored."""
    taken = [number for number in SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in taken}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
