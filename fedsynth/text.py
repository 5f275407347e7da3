"""Text from the other side of a wire, or from a folder: what may be shown of it, and which names a silo may have."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from fedsynth.errors import UserError

LONGEST_TEXT = 1000
"""Characters shown of a text from elsewhere."""
LONGEST_SILO_NAME = 64
"""Characters of a silo's name."""
_LONGEST_FOLDER = 200
_PATH = re.compile(r"""(?<=')/(?:[^'\n]|'(?=\w))+(?=')|(?<=")/[^"\n]+(?=")|(?<![\w.:/~<…-])/[^\s'",:;()\[\]{}<>]+""")
"""An absolute path, in quotes with blanks too."""


def printable(text: object, limit: int = LONGEST_TEXT) -> str:
    r"""Return text as one line that a terminal, a log and a page show as it is.

    What is not printable in the sense of :meth:`str.isprintable` (line breaks, control characters and with them
    terminal sequences, marks that turn the direction of writing, invisible characters, lone surrogates) becomes its
    Python escape, such as ``\n``, ``\x1b`` or ``\u202e``. What is printable stays, backslashes included.

    Args:
        text: anything; its ``str()`` counts.
        limit: characters of the result at most; a longer one ends in an ellipsis.
    """
    # Every character is at least one in the result: what lies behind need not be looked at.
    shown = visible(str(text)[: limit + 1])
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"


def visible(text: str) -> str:
    """Return text with its escapes as :func:`printable` does, however long it is."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def without_machine_paths(text: str, folder: Path) -> str:
    """Return text as a file in ``folder`` may hold it, which others read elsewhere: without absolute paths.

    Those in the folder go on from there, of others the last name stays.
    """
    own = re.escape(str(folder.absolute()))
    text = re.sub(rf"{own}/(?=[^\s'\"/])", "", text)
    text = re.sub(rf"{own}(?![\w.-])", lambda _: folder.absolute().name, text)
    return with_short_paths(text)


def with_short_paths(text: str) -> str:
    """Return text in which of every absolute path the last name stays."""
    return _PATH.sub(lambda found: f"…/{PurePosixPath(found[0]).name}", text)


def silo_name_problem(name: object) -> str:
    """Return what is wrong with a silo's name, empty if nothing is: it stands in logs, files and reports."""
    if (
        not isinstance(name, str)
        or not 1 <= len(name) <= LONGEST_SILO_NAME
        or not name.isprintable()
        or name != name.strip()
    ):
        return (
            f"silo-name = '{printable(name, 100)}': must be 1 to {LONGEST_SILO_NAME} printable characters, without"
            " blanks at its ends"
        )
    return ""


def check_silo_name(name: str) -> None:
    """Refuse a name that the other side of a run would not take.

    Raises:
        UserError: says what is wrong with it.
    """
    if problem := silo_name_problem(name):
        raise UserError(f"{problem}; give another --silo-name")


def folder_of_name(name: str) -> str:
    """Return the name of the folder that belongs to a name: what is no letter, digit, dot or hyphen is replaced."""
    folder = re.sub(r"[^\w.-]", "_", name)[:_LONGEST_FOLDER]
    return "_" if folder in (".", "..") else folder
