"""Locks between processes: a file that one of them holds at a time, however the holder ends."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from fedsynth.disk import explained_writing
from fedsynth.errors import UserError

_POLL = 0.02
"""Seconds between two attempts while a lock is waited for."""


class InUseError(UserError):
    """Another process holds the lock."""


@contextmanager
def locked(path: Path, what: str, wait: float = 0.0) -> Iterator[None]:
    """Hold the lock file ``path``; it is free again when the block ends, or this process, however that ends.

    The lock is ``flock``'s: it keeps out processes, and threads of the same one. The file stays, since removing it
    would let two holders in; it names who held it last.

    Args:
        path: the lock file; it and its folders are made.
        what: what is in use, as the error names it: ``"state folder '/silo/state'"``.
        wait: seconds to wait for a holder to end.

    Raises:
        InUseError: another holds it; the message names its process.
        UserError: the file cannot be written, or its disk knows no locks.
    """
    with explained_writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab+", buffering=0)
    with file:
        _acquire(file, path, what, wait)
        with suppress(OSError):  # a full disk: the lock holds, only its holder stays unnamed
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield


def is_held(path: Path) -> bool:
    """Whether a process holds the lock file ``path`` now; nothing is written.

    Raises:
        UserError: it cannot be read, or its disk knows no locks.
    """
    try:
        with path.open("rb") as file:
            # Shared: two that only look do not see each other.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError as error:
        raise UserError(f"'{path}' cannot be looked at: {error.strerror}") from error
    return False


def _acquire(file: FileIO, path: Path, what: str, wait: float) -> None:
    deadline = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(_POLL)
                continue
            file.seek(0)
            holder = file.read(200).decode(errors="replace").strip() or "another process"
            raise InUseError(f"{what} is in use by {holder} (lock '{path}'): wait for it, or end it") from None
        except OSError as error:
            raise UserError(f"'{path}' cannot be locked: {error.strerror}; use a folder on a local disk") from error
