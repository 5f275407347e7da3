"""Errors a user can act on."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user can fix: the message names what was given, what is allowed and what to do.

    Applications print its text alone, without a traceback.
    """


class FilesError(UserError):
    """Names files, which is for those only who own them: a file may be named after a patient.

    Args:
        message: with the names.
        elsewhere: what another institution is told.
    """

    def __init__(self, message: str, elsewhere: str) -> None:
        super().__init__(message)
        self.elsewhere = elsewhere


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``": did you mean 'x'?"`` for the closest known word, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f": did you mean '{close[0]}'?" if close else ""


def unknown_choice(kind: str, value: str, known: Iterable[str]) -> UserError:
    """Build the error for a name that is not in a closed list, with its nearest match."""
    names = list(known)
    return UserError(f"unknown {kind} '{value}'{did_you_mean(value, names)} (known: {', '.join(names)})")


class RunError(RuntimeError):
    """A run cannot go on: too few answers, a dead worker. The message says who and why."""
