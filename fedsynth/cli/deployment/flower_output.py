"""What ``flwr run`` says: shown, kept in a file, and searched for the reason why a run has no results."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedsynth.cli.deployment.terminal_progress import printer
from fedsynth.disk import explained_writing

READER_LIMIT = 10.0
"""Seconds in which the last lines are read after the process has ended: what it started may keep its output open."""

LINE_START = re.compile(r"^(?:fedsynth \d\d:\d\d:\d\d |\d{4}-\d\d-\d\d [\d:,]+ [A-Z]+ )")
"""Time of day before a line of our log, as a terminal shows it and as ``log.txt`` has it."""

_OURS = re.compile(rb"fedsynth \d\d:\d\d:\d\d ")
"""Begin of our lines where they are printed: :func:`fedsynth.logs.log_to_stderr`."""

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_EXCEPTION = re.compile(r"^[\w.]*(?:Error|Exception|Exit|Interrupt): ?")


@contextlib.contextmanager
def echoed(path: Path) -> Iterator[int]:
    """Yield a file descriptor for the output of a process; what it writes there is kept in ``path``.

    Our own log lines are printed too, with what is indented below them, see
    :func:`~fedsynth.cli.deployment.terminal_progress.printer`; what Flower and Ray say is in the file. Lines
    that do not fit on the disk are printed only: a run does not end for its log. If nobody reads what is printed
    any more, the descriptor is closed, which ends a process that writes on.

    Raises:
        UserError: ``path`` cannot be written.
        BrokenPipeError: nobody reads what is printed.
    """
    with explained_writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = path.open("wb", buffering=0)
    reading, writing = os.pipe()
    gone: list[BrokenPipeError] = []

    def echo() -> None:
        ours = False
        with kept, open(reading, "rb") as lines, printer() as show:
            for line in lines:
                ours = bool(_OURS.match(line)) or (ours and line.startswith(b"    "))
                with contextlib.suppress(OSError):
                    kept.write(line)
                try:
                    show(line.decode(errors="replace") if ours else "")
                except BrokenPipeError as error:
                    gone.append(error)
                    return

    reader = threading.Thread(target=echo, daemon=True)
    reader.start()
    try:
        yield writing
    finally:
        os.close(writing)
        reader.join(READER_LIMIT)
    if gone:
        raise gone[0]


def reason(lines: Sequence[str]) -> str:
    """Return why a run has no results, by what it said; empty if it does not say.

    Our own last error, or else the exception that all others followed from, or else what Flower frames as an error.

    Args:
        lines: what ``flwr run`` printed.
    """
    said = [LINE_START.sub("", _COLOUR.sub("", line).strip()) for line in lines]
    own = [line for line in said if line.startswith("error: ")]
    if own:
        return own[-1].removeprefix("error: ")
    if root := next((line for line in said if _EXCEPTION.match(line)), ""):
        return root
    return _framed(said)


def _framed(lines: Sequence[str]) -> str:
    """Return the text in the last frame headed "Error" of Flower's command."""
    text: list[str] = []
    inside = False
    for line in lines:
        if line.startswith("╭") and "Error" in line:
            text, inside = [], True
        elif line.startswith("╰"):
            inside = False
        elif inside:
            text.append(line.strip("│ "))
    return " ".join(part for part in text if part)


def failure(output: Path | None, log: Path) -> str:
    """Return why a run has no results, as the end of a sentence, with the files that say more.

    Args:
        output: what ``flwr run`` printed, of this attempt alone; None: it was printed and not kept.
        log: the run's ``log.txt``, which the ServerApp writes, also of earlier attempts.
    """
    lines = output.read_text(encoding="utf-8", errors="replace").splitlines() if output and output.is_file() else []
    files = " and ".join(str(path) for path in (output, log) if path and path.is_file())
    if found := reason(lines):
        return f": {found} (more in {files})"
    return f"; the reason stands above{f' and in {files}' if files else ''}"
