"""Writing a silo's ``audit.jsonl``: what is not recorded is not answered."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from fedsynth.audit import AUDIT_FILE
from fedsynth.chained_file import ChainedFile
from fedsynth.errors import UserError


class AuditLog:
    """The audit of one silo; several processes may write to it in turn.

    Args:
        folder: the silo's state folder; it is made when it is first written to.

    Attributes:
        path: the file.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / AUDIT_FILE
        self._lines = ChainedFile(self.path, "the audit", "fedsynth silo audit")

    def check(self, time: str) -> None:
        """Make sure that a line could be written, and close one that a crash has cut short.

        Args:
            time: what the closing line says.

        Raises:
            UserError: it cannot be written, or its end was altered.
        """
        with self._opened() as file:
            self._lines.last(file, time)

    def append(self, content: Mapping[str, Any]) -> None:
        """Add a line; it is on disk when this returns, even if the power fails next.

        Raises:
            UserError: as :meth:`check`.
        """
        with self._opened() as file:
            self._lines.add(file, content, self._lines.last(file, str(content.get("time", ""))))

    @contextlib.contextmanager
    def _opened(self) -> Iterator[FileIO]:
        try:
            with self._lines.opened() as file:
                yield file
        except (OSError, UserError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UserError(
                f"state folder '{self.path.parent}': {AUDIT_FILE} cannot be written ({reason}), and nothing is answered"
                " unrecorded: make room there, or start the silo with another --state-path"
            ) from error
