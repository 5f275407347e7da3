"""``status.json``: how a run stands, for ``fedsynth status``."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import socket
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from fedsynth.output import RunFolder
from fedsynth.text import printable
from strategies.conversation.reply_log import ReplyLog
from strategies.run.rounds import Round, RoundStrategy

logger = logging.getLogger("fedsynth")

LEAST_INTERVAL = 1.0
"""Seconds between two writes while a run works: a simulated round can take a tenth of that."""


class StatusWriter:
    """Keeps ``status.json`` of a run folder up to date.

    It is a convenience: where it cannot be written, the next file that matters says so.

    Args:
        folder: the run's.
        reply_log: who answered.
        rounds: rounds of the run.
        done: those that are done when it begins.
    """

    def __init__(self, folder: RunFolder, reply_log: ReplyLog, rounds: int, done: int = 0) -> None:
        self._folder = folder
        self._reply_log = reply_log
        self._said: dict[str, Any] = {
            "state": "running",
            "started": _moment(time.time()),
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "round": done,
            "rounds": rounds,
        }
        self._begun, self._written = False, -LEAST_INTERVAL
        reply_log.listener = self._now_and_then

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Write how the block ended, if the run has begun by then: what is refused before changes nothing."""
        try:
            yield
        except KeyboardInterrupt:
            self._note_stop()
            raise
        except BaseException as error:
            self._said |= {"state": "failed", "error": printable(error) or type(error).__name__}
            raise
        else:
            self._said["state"] = "finished"
        finally:
            if self._begun:
                self._write()

    def _note_stop(self) -> None:
        """Say what ``fedsynth run`` says of a run that Ctrl-C has stopped."""
        resume = f"fedsynth run --resume {shlex.quote(str(self._folder.path))}"
        self._said |= {"state": "stopped", "signal": "SIGINT", "resume": resume}
        logger.warning("stopped by SIGINT; go on with '%s', or with resume in a program", resume)

    def begin(self) -> None:
        """Say that the run is on, and keep saying how it stands."""
        self._begun = True
        self._write()

    def observe(self, strategy: RoundStrategy) -> Callable[[Round], None]:
        """Return an observer that notes how many rounds of ``strategy`` are done."""

        def note(done: Round) -> None:
            self._said |= {"round": done.number, "rounds": strategy.num_rounds}
            self._now_and_then()

        return note

    def _now_and_then(self) -> None:
        if self._begun and time.monotonic() - self._written >= LEAST_INTERVAL:
            self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        last = self._reply_log.last()
        silos = {name: {"message": was.message, "at": _moment(was.at), **was.row()} for name, was in last.items()}
        with contextlib.suppress(OSError, ValueError):
            self._folder.write_status({**self._said, "updated": _moment(time.time()), "silos": silos})


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")
