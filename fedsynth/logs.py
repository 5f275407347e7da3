"""The project's log lines in Flower's processes and in commands, on both sides."""

from __future__ import annotations

import copy
import logging
import sys
from pathlib import Path

from fedsynth.text import printable, without_machine_paths

logger = logging.getLogger("fedsynth")

LONGEST_LINE = 4000


class LineFormatter(logging.Formatter):
    """Writes every message as one line, whatever it quotes; a traceback follows indented, so that it is no message.

    Args:
        form: of a line, as ``logging`` takes it.
        time_form: of its time.
        folder: where the lines are kept for readers elsewhere, without absolute paths; None: they are of this machine.
    """

    def __init__(self, form: str, time_form: str | None = None, folder: Path | None = None) -> None:
        super().__init__(form, time_form)
        self._folder = folder

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the traceback if there is one."""
        # Another handler may have left its own rendering of the traceback in the record.
        record = copy.copy(record)
        record.exc_text = None
        return super().format(record)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        """Return the line."""
        record.message = printable(self._kept(record.message), LONGEST_LINE)
        return super().formatMessage(record)

    def formatException(self, ei: logging._SysExcInfoType) -> str:  # noqa: N802
        """Return the traceback."""
        return _indented(self._kept(super().formatException(ei)))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802
        """Return the stack."""
        return _indented(self._kept(stack_info))

    def _kept(self, text: str) -> str:
        return text if self._folder is None else without_machine_paths(text, self._folder)


def _indented(text: str) -> str:
    return "\n".join(f"    {printable(line, LONGEST_LINE)}" for line in text.split("\n"))


def log_to_stderr() -> None:
    """Send them, once a process, where Flower streams from, or where a SuperNode's own lines go."""
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(LineFormatter("fedsynth %(asctime)s %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def log_of_command() -> None:
    """Send what a command and its libraries say to its standard error, unless logging is set up already."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
