"""A disk that is full at the k-th write of this process, whoever writes."""

from __future__ import annotations

import builtins
import errno
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

_open = io.open


class FullDisk:
    """Counts the writes to files that Python opens below a folder, and lets the last of them through by half.

    Args:
        folder: what stands elsewhere is written as always.
        writes: how many the disk takes.
    """

    def __init__(self, folder: Path, writes: int) -> None:
        self._folder, self._left = str(folder), writes
        self.full = False

    def open(self, file: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        opened = _open(file, mode, *arguments, **named)
        written = set(mode) & set("wax+") and str(file).startswith(self._folder)
        return _Counted(opened, self) if written else opened

    def take(self, content: Any) -> Any:
        """Return what of the content the disk takes."""
        self._left -= 1
        self.full |= self._left < 0
        return content[: len(content) // 2] if self.full else content


class _Counted:
    """A file whose writes are counted."""

    def __init__(self, file: Any, disk: FullDisk) -> None:
        self._file, self._disk = file, disk

    def write(self, content: Any) -> int:
        taken = self._disk.take(content)
        written = self._file.write(taken)
        if self._disk.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return int(written)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __enter__(self) -> _Counted:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._file)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextmanager
def full_after(writes: int, folder: Path) -> Iterator[FullDisk]:
    """Let the disk under ``folder`` be full after some writes while the block runs."""
    disk = FullDisk(folder, writes)
    with mock.patch.object(io, "open", disk.open), mock.patch.object(builtins, "open", disk.open):
        yield disk
