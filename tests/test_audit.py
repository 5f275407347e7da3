from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import pytest

from fedsynth.audit import AuditReport, read_audit
from fedsynth.chain import LONGEST_LINE, START, chained, cut_off, entry_of, link_of


def message(number: int, **changes: Any) -> dict[str, Any]:
    """What an audit says of the ``number``-th message."""
    return {
        "time": f"2026-01-01T00:00:{number % 60:02d}.000+00:00",
        "run": str(number % 3),
        "message": "query.epsilon",
        "outcome": "answered",
        "asked": {"noise-queries": 1, "samples": 10 + number},
        "answered": {"epsilon": 100},
        "bytes-in": 5,
        "bytes-out": 100,
        "seconds": 0.25,
        **changes,
    }


def chain(count: int) -> list[bytes]:
    lines, last = [], START
    for number in range(count):
        line, last = chained(message(number), last)
        lines.append(line)
    return lines


def checked(lines: list[bytes], noted: str = "") -> AuditReport:
    return read_audit(io.BytesIO(b"".join(lines)), noted)


LINES = chain(12)


def test_every_line_holds_its_own_hash_and_the_one_before() -> None:
    """Anybody can check the chain with a JSON library and SHA-256 alone."""
    previous = "0" * 64
    for number, line in enumerate(LINES, 1):
        entry = json.loads(line)
        stated = entry.pop("hash")
        assert (entry["number"], entry["previous"]) == (number, previous)
        assert line.decode() == json.dumps({**entry, "hash": stated}, sort_keys=True, separators=(",", ":")) + "\n"
        previous = sha256(json.dumps(entry, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
        assert stated == previous
    report = checked(LINES)
    assert (report.lines, report.head.number, report.head.hash, report.problems) == (12, 12, previous, [])
    assert checked([]).head == START


def flip(lines: list[bytes], rng: random.Random) -> list[bytes]:
    content = bytearray(b"".join(lines))
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return [bytes(content)]


def drop(lines: list[bytes], rng: random.Random) -> list[bytes]:
    # The last line's absence cannot be seen without a hash that was noted.
    gone = rng.randrange(len(lines) - 1)
    return lines[:gone] + lines[gone + 1 :]


def swap(lines: list[bytes], rng: random.Random) -> list[bytes]:
    one, other = rng.sample(range(len(lines)), 2)
    changed = list(lines)
    changed[one], changed[other] = lines[other], lines[one]
    return changed


def repeat(lines: list[bytes], rng: random.Random) -> list[bytes]:
    place = rng.randrange(len(lines) + 1)
    return [*lines[:place], rng.choice(lines), *lines[place:]]


def put_in(lines: list[bytes], rng: random.Random) -> list[bytes]:
    """A line with a hash of its own, which follows from the one before it."""
    place = rng.randrange(len(lines))
    before = entry_of(lines[place - 1]) if place else None
    new, _ = chained(message(99), link_of(before) if before else START)
    return [*lines[:place], new, *lines[place:]]


def rewrite(lines: list[bytes], rng: random.Random) -> list[bytes]:
    """Another content under a hash that fits it."""
    place = rng.randrange(len(lines) - 1)
    before = entry_of(lines[place - 1]) if place else None
    new, _ = chained(message(place, asked={"samples": 1}), link_of(before) if before else START)
    return [*lines[:place], new, *lines[place + 1 :]]


def reformat(lines: list[bytes], rng: random.Random) -> list[bytes]:
    place = rng.randrange(len(lines))
    return [*lines[:place], json.dumps(json.loads(lines[place])).encode() + b"\n", *lines[place + 1 :]]


def junk(lines: list[bytes], rng: random.Random) -> list[bytes]:
    place = rng.randrange(len(lines) + 1)
    what = rng.choice(
        [b"\n", b"{}\n", b"[" * 50_000 + b"\n", b"\0" * 9 + b"\n", b'{"hash":3}\n', b"x" * (3 * LONGEST_LINE)]
    )
    return [*lines[:place], what, *lines[place:]]


@pytest.mark.parametrize("change", [flip, drop, swap, repeat, put_in, rewrite, reformat, junk])
def test_whatever_is_changed_is_found(change: Callable[[list[bytes], random.Random], list[bytes]]) -> None:
    rng = random.Random(7)
    for _ in range(400 if change is flip else 100):
        changed = change(LINES, rng)
        if changed != LINES:
            assert checked(changed).num_problems > 0


@pytest.mark.parametrize(
    ("lines", "problems"),
    [
        ([*LINES[:3], LINES[3].replace(b'"samples":13', b'"samples":12'), *LINES[4:]], ["line 4 is altered"]),
        ([*LINES[:3], b"x\n", b"y\n", *LINES[5:]], ["lines 4 to 5 are altered"]),
        ([*LINES[:3], *LINES[4:]], ["entry 4 is missing before line 4"]),
        ([*LINES[:3], *LINES[7:]], ["entries 4 to 7 are missing before line 4"]),
        (LINES[2:], ["entries 1 to 2 are missing before line 1"]),
        (
            [*LINES[:3], LINES[4], LINES[3], *LINES[5:]],
            ["entry 4 is missing before line 4", "line 5 is entry 4: it stands too late"],
        ),
        ([*LINES[:4], *LINES[3:]], ["line 5 is entry 4: it stands too late, or a second time"]),
        (
            put_in(LINES, random.Random(1)),
            ["line 4 is entry 3: it stands too late, or a second time", "line 5 does not follow from the one before"],
        ),
        (rewrite(LINES, random.Random(1)), ["does not follow from the one before: one of the two was written anew"]),
        ([*LINES[:-1], LINES[-1][:-1]], ["line 12 is cut short"]),
        ([*LINES, b'{"as'], ["line 13 is cut short"]),
    ],
)
def test_the_problem_is_named_with_its_line(lines: list[bytes], problems: list[str]) -> None:
    report = checked(lines)
    assert report.num_problems == len(report.problems) == len(problems), report.problems
    for said, expected in zip(report.problems, problems, strict=True):
        assert expected in said


def test_lines_cut_off_at_the_end_are_found_with_a_hash_noted_earlier() -> None:
    noted = checked(LINES[:8]).head.hash
    grown = checked(LINES, noted)
    assert (grown.num_problems, grown.noted_line) == (0, 8)
    assert checked(LINES[:7]).num_problems == 0, "the file alone does not tell"
    assert "cut off, or all was written anew" in checked(LINES[:7], noted).problems[0]
    anew, _ = chained(message(0, run="9"), START)
    assert checked([anew]).num_problems == 0
    assert checked([anew], noted).num_problems == 1


def test_a_line_that_a_crash_cut_short_is_closed_by_the_next_one() -> None:
    for cut in (1, 20, len(LINES[-1]) - 2):
        fragment = LINES[-1][:cut]
        closing, last = chained({"time": "t", **cut_off(fragment)}, link_of(json.loads(LINES[-2])))
        after, _ = chained(message(50), last)
        lines = [*LINES[:-1], fragment + b"\n", closing, after]
        report = checked(lines)
        assert (report.problems, report.cut_lines, report.head.number) == ([], [12], 13)
        assert sum(run.asked["noise-queries"] for run in report.runs.values()) == 12
        for without in ([*lines[:-3], *lines[-2:]], [*lines[:-3], b"x" + lines[-3], *lines[-2:]]):
            report = checked(without)
            assert report.num_problems == 1
            assert "speaks of a cut-off line before it, which is altered or missing" in report.problems[0]
        content = bytearray(b"".join(lines))
        rng = random.Random(cut)
        for _ in range(50):
            place = rng.randrange(len(b"".join(LINES[:-1])), len(content))
            content[place] ^= 4
            assert checked([bytes(content)]).num_problems > 0
            content[place] ^= 4


def test_totals_are_of_what_was_answered_and_why_others_were_not() -> None:
    contents = [
        message(0, message="query.describe", asked={}),
        message(3),
        message(6),
        message(9, outcome="refused", line="noise-queries-per-run = 2", why="PolicyError: …", answered=None),
        message(12, outcome="refused", why="MessageError: timestep is missing"),
        message(15, outcome="failed", why="OSError: disk"),
        message(1, message="train", asked={"optimiser-steps": 7}, seconds="long", **{"bytes-in": -3}),
    ]
    lines, last = [], START
    for content in contents:
        line, last = chained(content, last)
        lines.append(line)
    report = checked(lines)
    assert list(report.runs) == ["0", "1"]
    first = report.runs["0"]
    assert first.answered == {"query.describe": 1, "query.epsilon": 2}
    assert first.asked == {"noise-queries": 2, "samples": 29}
    assert first.refused == {
        "epsilon: noise-queries-per-run = 2": 1,
        "epsilon: MessageError: timestep is missing": 1,
    }
    assert first.failed == {"epsilon: OSError: disk": 1}
    assert (first.bytes_in, first.bytes_out, first.seconds) == (30, 600, 1.5)
    assert (first.first[-12:-6], first.last[-12:-6]) == ("00.000", "15.000")
    second = report.runs["1"]
    assert (second.asked, second.seconds, second.bytes_in) == ({"optimiser-steps": 7}, 0.0, 0)


def test_reasons_without_end_are_counted_together() -> None:
    lines, last = [], START
    for number in range(50):
        line, last = chained(message(0, outcome="refused", why=f"reason {number}"), last)
        lines.append(line)
    refused = checked(lines).runs["0"].refused
    assert refused.total() == 50
    assert refused["other reasons"] == 30


class WrittenWhileRead:
    """A long audit that never is in memory as a whole."""

    def __init__(self, count: int) -> None:
        self.left, self.last = count, START

    def readline(self, size: int) -> bytes:
        assert 0 < size <= LONGEST_LINE
        if not self.left:
            return b""
        line, self.last = chained(message(self.left, run=str(self.left // 10_000)), self.last)
        self.left -= 1
        return line


def test_a_long_audit_is_read_line_by_line() -> None:
    long = WrittenWhileRead(20_000)
    report = read_audit(long)  # type: ignore[arg-type]
    assert (report.problems, report.lines, report.head) == ([], 20_000, long.last)
    assert [run.answered["query.epsilon"] for run in report.runs.values()] == [1, 10_000, 9_999]
