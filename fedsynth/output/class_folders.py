"""Class names as folder names that every reader of the dataset understands alike."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

MAX_LENGTH = 60

# The `datasets` library takes folders with one of these words, standing between these separators, for splits.
_SPLIT_WORD = re.compile(
    r"(?<![^-._ 0-9])(train|training|validation|valid|dev|val|test|testing|eval|evaluation)(?![^-._ 0-9])"
)
# It also reads a column of such labels as dates instead of text.
_DATE = re.compile(r"^(\d{4})-(\d\d)-(\d\d)")
_RESERVED_ON_WINDOWS = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def folder_names(classes: Sequence[str]) -> tuple[str, ...]:
    """Map class names to folder names, one to one.

    Whole numbers are padded with zeros to one width, so that sorted folders keep their order. Names that are safe stay
    as they are; in others, characters are replaced. Names that would collide, also on a file system that ignores
    case, get a number.

    Args:
        classes: Distinct class names, any text.

    Returns:
        Distinct folder names in the same order.
    """
    numbers = all(name.isascii() and name.isdigit() for name in classes)
    width = max(map(len, classes), default=0) if numbers else 0
    wanted = [_safe(name.zfill(width)) for name in classes]
    taken: set[str] = set()
    folders = dict.fromkeys(range(len(classes)), "")
    # Unchanged names first: "a_b" must not lose its name to the cleaned "a/b".
    for index in sorted(folders, key=lambda i: (wanted[i] != classes[i], i)):
        folders[index] = _untaken(wanted[index], taken)
        taken.add(folders[index].casefold())
    return tuple(folders.values())


def _safe(name: str) -> str:
    text = unicodedata.normalize("NFC", name)
    text = re.sub(r"[^\w .()+-]", "_", text)
    text = _DATE.sub(r"\1_\2_\3", text)
    # Leading dots hide a folder; so do two leading underscores in the `datasets` library.
    text = text.lstrip("._ ")[:MAX_LENGTH].rstrip(". ") or "unnamed"
    text = _SPLIT_WORD.sub(r"(\1)", text)
    return f"({text})" if _RESERVED_ON_WINDOWS.fullmatch(text) else text


def _untaken(name: str, taken: set[str]) -> str:
    candidate = name
    number = 2
    while candidate.casefold() in taken:
        candidate = f"{name}-{number}"
        number += 1
    return candidate
