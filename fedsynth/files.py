"""Files that are either whole or absent: write under a temporary name, then rename."""

from __future__ import annotations

import codecs
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from fedsynth.errors import UserError


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; on success it replaces ``path``, on failure it is removed.

    If the power fails, the file is the old one or the new one: the content is on the disk before it has the name.
    """
    temporary = _beside(path)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; on success it replaces ``path``, on failure it is removed."""
    temporary, old = _beside(path), _beside(path)
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            path.replace(old)
        temporary.replace(path)
    finally:
        if old.exists() and not path.exists():
            old.replace(path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _beside(path: Path) -> Path:
    """Name an unused hidden file next to ``path``; the caller creates it, so that the user's umask applies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.{uuid4().hex}.part")


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, 64 hexadecimal digits.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_text(path: Path) -> str:
    """Read a text file that a person wrote: UTF-8, with or without a byte-order mark, or UTF-16 with one.

    Lines end in ``\\n``, however the file ends them.

    Raises:
        OSError: it cannot be read.
        UserError: it is neither; the message says what it looks like, and does not name it.
    """
    content = path.read_bytes()
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        found = "torn UTF-16" if wide else f"byte {error.start + 1} is no UTF-8"
        raise UserError(f"{found}: save the file as UTF-8") from None
    if "\0" in text:  # text has none; in UTF-16 every second byte of a Latin letter is one
        raise UserError("UTF-16 without a byte-order mark, or no text at all: save the file as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


@contextmanager
def damage_named(path: Path, if_removed: str) -> Iterator[None]:
    """Turn what reading damaged content raises into one error.

    Args:
        path: of the file.
        if_removed: what comes of it if somebody removes the file.

    Raises:
        UserError: with file and cause; one of the block itself stays as it is.
    """
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"'{path}' is damaged ({error}): put back a copy of it; whoever removes it {if_removed}"
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically.

    Raises:
        ValueError: it holds a number that JSON does not know, see :func:`nonfinite_as_null`.
    """
    with atomic_file(path) as temporary:
        temporary.write_text(json_text(value, indent=2) + "\n", encoding="utf-8")


def json_text(value: Any, indent: int | None = None) -> str:
    """Return ``value`` as JSON; Python's own ``NaN`` and ``Infinity`` are none, and other programs stop at them.

    Raises:
        ValueError: it holds one of them.
    """
    return json.dumps(value, indent=indent, allow_nan=False)


def parse_json(text: str | bytes) -> Any:
    """Read JSON; numbers that are none, as earlier versions wrote them, become None.

    Raises:
        ValueError: it is no JSON.
    """
    return nonfinite_as_null(json.loads(text, parse_constant=lambda constant: None))


def as_json(value: Any) -> Any:
    """Return a value as JSON gives it back: tuples become lists."""
    return list(value) if isinstance(value, tuple) else value


def nonfinite_as_null(value: Any) -> Any:
    """Return a copy of ``value``, of mappings and sequences, with None for every number that is NaN or infinite.

    For measures that may not be defined; a missing number stands in files as ``null``.
    """
    if isinstance(value, Mapping):
        return {key: nonfinite_as_null(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [nonfinite_as_null(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
