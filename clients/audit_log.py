"""Writing a silo's ``audit.jsonl``: what is not recorded is not answered."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from fedsynth.audit import AUDIT_FILE, LONGEST_LINE, START, Link, chained, cut_off, entry_of, link_of
from fedsynth.errors import UserError
from fedsynth.locks import locked

LOCK_WAIT = 30.0
"""Seconds to wait for another process that writes a line."""


class AuditLog:
    """The audit of one silo; several processes may write to it in turn.

    Args:
        folder: the silo's state folder; it is made when it is first written to.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / AUDIT_FILE

    def check(self, time: str) -> None:
        """Make sure that a line could be written, and close one that a crash has cut short.

        Args:
            time: what the closing line says.

        Raises:
            UserError: it cannot be written, or its end was altered.
        """
        with self._opened() as file:
            self._last(file, time)

    def append(self, content: Mapping[str, Any]) -> None:
        """Add a line; it is on disk when this returns, even if the power fails next.

        Raises:
            UserError: as :meth:`check`.
        """
        with self._opened() as file:
            _write(file, chained(content, self._last(file, str(content.get("time", ""))))[0])

    def _last(self, file: FileIO, time: str) -> Link:
        """Return where the chain stands, after closing a line that was cut short."""
        last, fragment = self._end(file)
        if entry := entry_of(fragment + b"\n"):
            # Cut short by its line break alone.
            _write(file, b"\n")
            last = link_of(entry)
        elif fragment:
            line, last = chained({"time": time, **cut_off(fragment)}, last)
            _write(file, b"\n" + line)
        return last

    def _end(self, file: FileIO) -> tuple[Link, bytes]:
        """Return where the chain stands, and what follows its last whole line."""
        size = file.seek(0, os.SEEK_END)
        start = max(0, size - 2 * LONGEST_LINE)
        file.seek(start)
        end = file.read(size - start)
        whole, line_break, fragment = end.rpartition(b"\n")
        if not line_break and start == 0:
            return START, fragment
        entry = entry_of(whole.rpartition(b"\n")[2] + line_break)
        if entry is None:
            raise UserError("its last line is altered, see 'fedsynth silo audit'; move it away, and another one begins")
        return link_of(entry), fragment

    @contextlib.contextmanager
    def _opened(self) -> Iterator[FileIO]:
        try:
            with locked(self.path.with_name(f".{AUDIT_FILE}.lock"), "the audit", wait=LOCK_WAIT):
                new = not self.path.exists()
                with FileIO(self.path, "a+") as file:
                    yield file
                if new:
                    _flush_folder(self.path.parent)
        except (OSError, UserError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UserError(
                f"state folder '{self.path.parent}': {AUDIT_FILE} cannot be written ({reason}), and nothing is answered"
                " unrecorded: make room there, or start the silo with another --state-path"
            ) from error


def _write(file: FileIO, line: bytes) -> None:
    """Add bytes at the end, all or none; the file was opened for appending."""
    size = file.seek(0, os.SEEK_END)
    try:
        if file.write(line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(file.fileno())
    except OSError:
        with contextlib.suppress(OSError):
            file.truncate(size)
        raise


def _flush_folder(folder: Path) -> None:
    """Have the name of a new file survive a power failure too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
