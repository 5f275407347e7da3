"""The project's log lines in Flower's processes, on both sides."""

from __future__ import annotations

import logging
import sys

logger = logging.getLogger("fedsynth")


def log_to_stderr() -> None:
    """Send them, once a process, where Flower streams from, or where a SuperNode's own lines go."""
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("fedsynth %(asctime)s %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
