"""Files of lines that are each chained to the one before, such as a silo's audit: what is altered is found and named.

A line is a JSON object in one canonical form (sorted keys, no blanks, ASCII). It holds its ``number``, the hash of the
line before it (``previous``) and its own ``hash``: SHA-256 over the canonical form of everything else in the line. So
an altered line does not fit its hash, and a line that is missing, moved or put in does not fit its neighbours. Nothing
in the file tells that its last lines were cut off, or that somebody wrote all of it anew: for that, a hash that was
noted elsewhere must still be in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import IO, Any

LONGEST_LINE = 2**16
"""Bytes of a line: what is longer was not written by a silo."""

_CUT_OFF = "cut-off"
_MOST_PROBLEMS = 20


@dataclass(frozen=True)
class Link:
    """Where a chain stands.

    Attributes:
        number: lines of the chain up to here.
        hash: of the last of them.
    """

    number: int
    hash: str


START = Link(0, "0" * 64)
"""What the first line follows."""


def chained(content: Mapping[str, Any], last: Link) -> tuple[bytes, Link]:
    """Return the line, with its line break, that follows ``last``, and where the chain stands after it.

    Args:
        content: what the line says; finite numbers, text, and lists and mappings of them.
        last: where the chain stands.
    """
    body = {**content, "number": last.number + 1, "previous": last.hash}
    digest = _digest(body)
    return _canonical({**body, "hash": digest}) + b"\n", Link(last.number + 1, digest)


def cut_off(fragment: bytes) -> dict[str, Any]:
    """Return what the next line says of one that a crash cut short."""
    return {"outcome": _CUT_OFF, "cut-bytes": len(fragment), "cut-sha256": sha256(fragment).hexdigest()}


def entry_of(line: bytes) -> dict[str, Any] | None:
    """Return what a line says; None if it is not whole, not in its canonical form, or does not fit its own hash."""
    if not line.endswith(b"\n") or len(line) > LONGEST_LINE:
        return None
    try:
        entry = json.loads(line)
        stated = entry["hash"], entry["number"], entry["previous"]
        if [type(value) for value in stated] != [str, int, str] or _canonical(entry) != line[:-1]:
            return None
        return entry if stated[0] == _digest({key: entry[key] for key in entry if key != "hash"}) else None
    except (ValueError, LookupError, TypeError, RecursionError):
        return None


def link_of(entry: Mapping[str, Any]) -> Link:
    """Return where a chain stands after an entry."""
    return Link(entry["number"], entry["hash"])


def _digest(body: Mapping[str, Any]) -> str:
    return sha256(_canonical(body)).hexdigest()


def _canonical(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


@dataclass
class ChainReport:
    """Whether a chain holds.

    Attributes:
        lines: in the file.
        head: where its chain ends.
        cut_lines: lines that a crash cut short, and of which the next line says so.
        problems: what is wrong with the chain, the first of them.
        num_problems: how many there are.
        noted_line: line whose hash was given as noted earlier; 0 if none.
    """

    lines: int = 0
    head: Link = START
    cut_lines: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    num_problems: int = 0
    noted_line: int = 0

    def complain(self, problem: str) -> None:
        """Note a problem."""
        self.num_problems += 1
        if len(self.problems) < _MOST_PROBLEMS:
            self.problems.append(problem)

    def broken_lines(self) -> Iterator[str]:
        """Say what does not hold, a line each; nothing if all does."""
        for problem in self.problems:
            yield f"BROKEN {problem}"
        if more := self.num_problems - len(self.problems):
            yield f"BROKEN {more:,} more"


class _Unread:
    """Lines that are no entries, one after the other, up to the next entry."""

    def __init__(self) -> None:
        self.first = self.count = self.size = 0
        self.whole = True
        self._sum = sha256()

    def add(self, piece: bytes, line: int, begins: bool) -> None:
        """Take a line, or a further piece of it."""
        if begins:
            self.first = self.first or line
            self.count += 1
            self.size, self._sum = 0, sha256()
        bare = piece.removesuffix(b"\n")
        self.size += len(bare)
        self._sum.update(bare)
        self.whole = piece.endswith(b"\n")

    def is_cut_off_of(self, entry: Mapping[str, Any]) -> bool:
        """Whether it is the one line that an entry calls cut off."""
        said = entry.get("cut-bytes"), entry.get("cut-sha256")
        return self.count == 1 and said == (self.size, self._sum.hexdigest())

    def __str__(self) -> str:
        last = self.first + self.count - 1
        return f"line {self.first} is" if self.count == 1 else f"lines {self.first} to {last} are"


def read_chain(file: IO[bytes], report: ChainReport, take: Callable[[dict[str, Any]], None], noted: str = "") -> None:
    """Read a file line by line, and check its chain.

    Args:
        file: of any length: one line at a time is in memory.
        report: is filled in.
        take: is called with every entry but those that speak of a line that a crash cut short.
        noted: hash of a line that was noted earlier; empty: none.
    """
    unread = _Unread()
    begins = True
    while piece := file.readline(LONGEST_LINE):
        report.lines += begins
        entry = entry_of(piece) if begins else None
        if entry is None:
            unread.add(piece, report.lines, begins)
        else:
            if noted and entry["hash"] == noted:
                report.noted_line = report.lines
            if _follows(entry, unread, report):
                take(entry)
            unread = _Unread()
        begins = piece.endswith(b"\n")
    if unread.count and unread.whole:
        report.complain(f"{unread} altered: no entry of a chain")
    elif unread.count:
        report.complain(f"line {report.lines} is cut short: by a crash, and the next message closes it, or by a hand")
    if noted and not report.noted_line:
        report.complain("no line has the hash that was noted: lines were cut off, or all was written anew")


def _follows(entry: Mapping[str, Any], unread: _Unread, report: ChainReport) -> bool:
    """Judge an entry and the lines before it that are none; return whether it is one of its own."""
    cut = entry.get("outcome") == _CUT_OFF
    # A line that was cut short never was an entry.
    skipped = max(0, unread.count - cut)
    if cut and unread.is_cut_off_of(entry):
        report.cut_lines.append(unread.first)
    elif cut:
        report.complain(f"line {report.lines} speaks of a cut-off line before it, which is altered or missing")
    elif unread.count:
        report.complain(f"{unread} altered: no entry of a chain")
    _follow(entry, skipped, report)
    return not cut


def _follow(entry: Mapping[str, Any], skipped: int, report: ChainReport) -> None:
    """Judge whether an entry follows from the last one; ``skipped`` altered lines count as the entries they were."""
    line, last, link = report.lines, report.head, link_of(entry)
    expected = last.number + 1 + skipped
    if link.number > expected:
        gone = f"entry {expected} is" if link.number == expected + 1 else f"entries {expected} to {link.number - 1} are"
        report.complain(f"{gone} missing before line {line}")
    elif link.number < expected:
        report.complain(f"line {line} is entry {link.number}: it stands too late, or a second time")
        if link.number <= last.number:
            return
    elif not skipped and entry["previous"] != last.hash:
        report.complain(f"line {line} does not follow from the one before: one of the two was written anew")
    report.head = link
