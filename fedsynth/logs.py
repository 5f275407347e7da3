"""The project's log lines in Flower's processes and in commands, on both sides."""

from __future__ import annotations

import copy
import logging
import sys

from fedsynth.text import printable

logger = logging.getLogger("fedsynth")

LONGEST_LINE = 4000


class LineFormatter(logging.Formatter):
    """Writes every message as one line, whatever it quotes; a traceback follows indented, so that it is no message."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the traceback if there is one."""
        # Another handler may have left its own rendering of the traceback in the record.
        record = copy.copy(record)
        record.exc_text = None
        return super().format(record)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        """Return the line."""
        record.message = printable(record.message, LONGEST_LINE)
        return super().formatMessage(record)

    def formatException(self, ei: logging._SysExcInfoType) -> str:  # noqa: N802
        """Return the traceback."""
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802
        """Return the stack."""
        return _indented(stack_info)


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
