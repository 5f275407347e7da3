"""``audit/log.jsonl`` of a run: what was signed in every round, one chained line each."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from fedsynth.chained_file import ChainedFile
from fedsynth.output.audit_files import LOG


class AuditLog:
    """Writes the log of a run; each line is on disk when its call returns.

    Args:
        folder: ``audit`` in the run folder.
    """

    def __init__(self, folder: Path) -> None:
        self._file = ChainedFile(folder / LOG, "the audit of the run", "fedsynth audit")
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, event: str, **content: Any) -> None:
        """Add a line.

        Args:
            event: what it is, see :mod:`fedsynth.replicas.audit`.
            content: what else it says.

        Raises:
            OSError: it cannot be written.
            UserError: the last line was altered, or another process keeps the file.
        """
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        with self._file.opened() as file:
            self._file.add(file, {"time": now, "event": event, **content}, self._file.last(file, now))
