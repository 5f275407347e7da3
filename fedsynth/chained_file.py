"""Writing a file of chained lines (:mod:`fedsynth.chain`) that a crash at any moment leaves whole."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from fedsynth.chain import LONGEST_LINE, START, Link, chained, cut_off, entry_of, link_of
from fedsynth.errors import UserError
from fedsynth.locks import locked

LOCK_WAIT = 30.0
"""Seconds to wait for another process that writes a line."""


class ChainedFile:
    """A file of chained lines; several processes may write to it in turn.

    Args:
        path: the file; it and its folder are made when it is first opened.
        what: what it is, in errors, such as ``the audit``.
        command: what prints it, in errors.
    """

    def __init__(self, path: Path, what: str, command: str) -> None:
        self.path = path
        self._what = what
        self._command = command

    @contextlib.contextmanager
    def opened(self) -> Iterator[FileIO]:
        """Keep other processes from writing, and yield the file.

        Raises:
            OSError: it cannot be opened.
            UserError: another process keeps it.
        """
        with locked(self.path.with_name(f".{self.path.name}.lock"), self._what, wait=LOCK_WAIT):
            new = not self.path.exists()
            with FileIO(self.path, "a+") as file:
                yield file
            if new:
                _flush_folder(self.path.parent)

    def last(self, file: FileIO, time: str) -> Link:
        """Return where the chain stands, after closing a line that was cut short.

        Args:
            file: from :meth:`opened`.
            time: what the closing line says.

        Raises:
            OSError: it cannot be written.
            UserError: its end was altered.
        """
        last, fragment = self._end(file)
        if entry := entry_of(fragment + b"\n"):
            # Cut short by its line break alone.
            _write(file, b"\n")
            last = link_of(entry)
        elif fragment:
            line, last = chained({"time": time, **cut_off(fragment)}, last)
            _write(file, b"\n" + line)
        return last

    def add(self, file: FileIO, content: Mapping[str, Any], last: Link) -> Link:
        """Add a line after ``last``; it is on disk when this returns, even if the power fails next.

        Returns:
            Where the chain stands now.

        Raises:
            OSError: it cannot be written; then nothing of it is.
        """
        line, link = chained(content, last)
        _write(file, line)
        return link

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
            raise UserError(f"its last line is altered, see '{self._command}'; move it away, and another one begins")
        return link_of(entry), fragment


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
