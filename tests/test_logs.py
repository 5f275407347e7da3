from __future__ import annotations

import logging
import sys

from hostile_text import HOSTILE, unshown

from fedsynth.errors import UserError
from fedsynth.logs import LONGEST_LINE, LineFormatter


def record_of(message: str, *arguments: object, failed: bool = False) -> logging.LogRecord:
    error = sys.exc_info() if failed else None
    return logging.LogRecord("fedsynth", logging.INFO, "here.py", 1, message, arguments, error)


def test_a_message_is_one_line_whatever_it_quotes() -> None:
    written = LineFormatter("%(levelname)s %(message)s").format(record_of("%s left out: %s", "north", HOSTILE))
    assert written.startswith(r"INFO north left out: x\n2026-01-01 00:00:00,000 INFO run finished\x1b[2J")
    assert written.isprintable()
    assert len(written) <= LONGEST_LINE + len("INFO ")


def test_a_traceback_stands_indented_below_its_message() -> None:
    try:
        raise UserError(HOSTILE)
    except UserError:
        record = record_of("given up", failed=True)
    # What another handler has rendered before, with its line breaks.
    logging.Formatter().format(record)
    first, *others = LineFormatter("%(message)s").format(record).split("\n")
    assert first == "given up"
    assert all(line.startswith("    ") for line in others)
    assert not unshown("\n".join(others))
    assert others[0] == "    Traceback (most recent call last):"
