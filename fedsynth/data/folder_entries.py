"""Folders' entries, listed or refused by name, never passed over in silence; and names that folders can have."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from fedsynth.errors import UserError
from fedsynth.spec import MAX_CLASSES, MAX_NAME_LENGTH
from fedsynth.text import printable, visible

_SYSTEM_NAMES = frozenset(
    {
        *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "~snapshot"),
        *("__macosx", "__pycache__", "lost+found", "$recycle.bin", "system volume information"),
        *("thumbs.db", "ehthumbs.db", "desktop.ini"),
    }
)


def is_system_name(name: str) -> bool:
    """Whether a file or folder belongs to the system, a network drive or a program: hidden names, ``@eaDir``, ..."""
    return name.startswith(".") or name.casefold() in _SYSTEM_NAMES


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return what lies in ``folder``, sorted by name.

    Raises:
        UserError: it cannot be listed.
    """
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(
            f"the folder {shown(folder)} may not be read ({error.strerror}): change its permissions, or move it away"
        ) from error


def utf8_name(path: Path) -> str:
    """Return the last part of ``path`` as the text that its bytes are in UTF-8, whatever the locale.

    Raises:
        UserError: they are no UTF-8.
    """
    try:
        return os.fsencode(path.name).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"the name {shown(path)} is not UTF-8: rename it (convmv -f latin1 -t utf8 --notest, for names from older"
            " systems)"
        ) from error


def shown(path: Path) -> str:
    """Return a path in quotes; bytes that are no UTF-8 and characters that do not print are escaped."""
    return f"'{visible(os.fsencode(path).decode('utf-8', 'backslashreplace'))}'"


def class_folder_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return names of classes as folders can have them: in Unicode's composed form, slashes as hyphens.

    Raises:
        UserError: a folder cannot have one, two are the same, or there are too many.
    """
    usable = tuple(unicodedata.normalize("NFC", name).strip().replace("/", "-") for name in names)
    for name in usable:
        if not name.isprintable() or not 1 <= len(name) <= MAX_NAME_LENGTH or name.startswith("."):
            raise UserError(f"class '{printable(name, MAX_NAME_LENGTH)}' cannot be a folder's name: rename it")
    if len(set(usable)) < len(usable) or len(usable) > MAX_CLASSES:
        raise UserError(f"{len(usable)} classes: at most {MAX_CLASSES} with names of their own are allowed")
    return usable
