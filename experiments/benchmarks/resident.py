"""The resident set of this process, in bytes (Linux, glibc)."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

_M_MMAP_THRESHOLD = -3  # of malloc.h


def return_freed_memory(above: int = 65536) -> None:
    """Have freed blocks of more than ``above`` bytes given back to the system at once."""
    _libc().mallopt(_M_MMAP_THRESHOLD, above)


def reset_peak() -> int:
    """Give free memory back, forget earlier peaks, and return the resident set."""
    gc.collect()
    _libc().malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return _status("VmRSS")


def peak() -> int:
    """Return the largest resident set since :func:`reset_peak`."""
    return _status("VmHWM")


def anonymous() -> int:
    """Return the part of the resident set that lies on no file, which the system cannot take back."""
    return _status("RssAnon")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL("libc.so.6")
