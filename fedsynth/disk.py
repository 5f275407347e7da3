"""Disk problems in the user's words."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedsynth.errors import UserError
from fedsynth.units import human_bytes

_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_IN_THE_WAY = {errno.ENOTDIR, errno.EEXIST}


def describe_write_error(error: OSError, path: Path) -> UserError:
    """Turn an ``OSError`` met while writing ``path`` into an error that says what to do."""
    if error.errno in _FULL:
        advice = "no space left on that disk: free some, or choose an output folder on another disk"
    elif error.errno in _FORBIDDEN:
        advice = "you may not write there: change its permissions, or choose another output folder"
    elif error.errno in _IN_THE_WAY:
        advice = "a file stands where a folder is needed: remove it, or choose another output folder"
    else:
        advice = f"{error.strerror or error}: choose another output folder"
    return UserError(f"cannot write '{path}': {advice}")


def is_forbidden(error: BaseException | None) -> bool:
    """Return whether an error says that this user may not write there, or nobody may."""
    return isinstance(error, OSError) and error.errno in _FORBIDDEN


@contextmanager
def explained_writing(path: Path) -> Iterator[None]:
    """Raise every ``OSError`` of the block as the :class:`UserError` of :func:`describe_write_error`."""
    try:
        yield
    except OSError as error:
        raise describe_write_error(error, path) from error


def check_writable(path: Path) -> None:
    """Refuse to start work whose result cannot be written.

    Args:
        path: File or folder that will be written; neither it nor its parents need to exist yet.

    Raises:
        UserError: The folder that holds it, or will, cannot be written.
    """
    existing = next(folder for folder in path.absolute().parents if folder.exists())
    with explained_writing(path):
        # Permission bits are not enough (root, read-only mounts): only writing shows it.
        tempfile.TemporaryFile(dir=existing).close()


def check_free_space(path: Path, needed_bytes: int) -> None:
    """Refuse to start writing what cannot fit.

    Args:
        path: Where the data will go; neither it nor its parents need to exist yet.
        needed_bytes: Upper estimate of what will be written.

    Raises:
        UserError: The disk that holds ``path`` has fewer than ``needed_bytes`` free.
    """
    existing = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise UserError(
            f"not enough disk space for '{path}': {human_bytes(needed_bytes)} needed, {human_bytes(free)} free; "
            "free some, or choose an output folder on another disk"
        )


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files below a folder; 0 if there is none. Files that vanish meanwhile do not count."""
    found = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            found += path.lstat().st_size
    return found
