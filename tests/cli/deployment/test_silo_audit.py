from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hostile_text import HOSTILE, unshown

from fedsynth.chain import START, chained
from fedsynth.cli import main


def write_audit(path: Path, contents: list[dict[str, Any]]) -> str:
    """Write an audit; return its head hash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    last = START
    with path.open("wb") as file:
        for content in contents:
            line, last = chained(content, last)
            file.write(line)
    return last.hash


def message(kind: str, run: str = "17", outcome: str = "answered", **changes: Any) -> dict[str, Any]:
    size = {"bytes-in": 1000, "bytes-out": 2500}
    return {"time": "2026-01-01", "run": run, "message": kind, "outcome": outcome, "seconds": 30.0, **size, **changes}


CONTENTS = [
    message("query.describe", time="2026-01-01T09:00:00.000+00:00"),
    message("query.epsilon", asked={"noise-queries": 1, "samples": 600, "least-holders": 3}),
    message("query.epsilon", asked={"noise-queries": 1, "samples": 700, "least-holders": 2}),
    message("query.sample", outcome="refused", why="PolicyError: …", line='answers = ["describe", "epsilon"]'),
    message("query.epsilon", outcome="refused", why="MessageError: timestep is missing"),
    message("query.epsilon", outcome="failed", why="OSError: gone", time="2026-01-01T09:30:00.000+00:00"),
    message("train", run="18", asked={"optimiser-steps": 40}, round=1),
]
NORTH = Path("silo") / "state" / "north" / "audit.jsonl"


@pytest.fixture
def head(project: Path) -> str:
    return write_audit(project / NORTH, CONTENTS)


def test_totals_of_every_run_and_the_head(head: str, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["silo", "audit"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"audit  {project / NORTH}: 7 lines",
        "run    17: 2026-01-01T09:00:00.000+00:00 to 2026-01-01T09:30:00.000+00:00",
        "         answered  describe 1, epsilon 2",
        "         asked     least holders 2, noise queries 2, samples 1,300",
        '         refused   1: sample: answers = ["describe", "epsilon"]',
        "         refused   1: epsilon: MessageError: timestep is missing",
        "         failed    1: epsilon: OSError: gone",
        "         worked    3 min 00 s; 6 kB in, 15 kB out",
        "run    18: 2026-01-01 to 2026-01-01",
        "         answered  train 1",
        "         asked     optimiser steps 40",
        "         worked    30 s; 1 kB in, 2.5 kB out",
        "chain  whole: every line follows from the one before",
        f"head   {head} (entry 7): note it elsewhere",
    ]


def test_a_broken_chain_is_exit_status_1_and_names_the_line(
    head: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (project / NORTH).read_bytes().splitlines(keepends=True)
    (project / NORTH).write_bytes(b"".join([*lines[:2], lines[2].replace(b"700", b"007"), *lines[3:]]))
    assert main(["silo", "audit"]) == 1
    said = capsys.readouterr().out
    assert "BROKEN line 3 is altered: no entry of a chain\n" in said
    assert "chain  whole" not in said


def test_a_head_noted_earlier_shows_what_the_file_alone_cannot(
    head: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["silo", "audit", "--head", head]) == 0
    assert "noted  the hash noted earlier is that of line 7\n" in capsys.readouterr().out
    lines = (project / NORTH).read_bytes().splitlines(keepends=True)
    copy = project / "copy" / "audit.jsonl"
    copy.parent.mkdir()
    copy.write_bytes((project / NORTH).read_bytes())
    assert main(["silo", "audit", "--state-path", "copy", "--head", head]) == 0
    assert f"audit  {copy}: 7 lines" in capsys.readouterr().out
    (project / NORTH).write_bytes(b"".join(lines[:-1]))
    assert main(["silo", "audit"]) == 0
    assert main(["silo", "audit", "--head", head]) == 1
    assert "BROKEN no line has the hash that was noted" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["silo", "audit", "--help"])
    assert re.search(
        r"file\s+alone\s+cannot\s+tell\s+that\s+its\s+last\s+lines\s+were\s+cut\s+off", capsys.readouterr().out
    )


def test_text_from_the_server_cannot_leave_its_line(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = message(HOSTILE, run=HOSTILE, outcome="refused", why=HOSTILE, time=HOSTILE)
    write_audit(project / NORTH, [hostile, message(HOSTILE, asked={HOSTILE: 1})])
    assert main(["silo", "audit"]) == 0
    said = capsys.readouterr().out
    assert not unshown(said)
    assert len(said) < 5000


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--state-path absent", "there is no audit.jsonl below '"),
        ("--silo-name south", "the silo has answered nothing, or under another --silo-name"),
        ("--silo-name " + "x" * 65, "must be 1 to 64 printable characters"),
        ("--head 1234", "head = '1234': must be the 64 digits that 'fedsynth silo audit' printed as head"),
        ("--haed 1234", "unknown option '--haed'"),
    ],
)
def test_mistakes_are_one_line(given: str, said: str, head: str, refused: Callable[..., str]) -> None:
    assert said in refused("silo", "audit", *given.split())


def test_one_of_several_silos_is_chosen_by_name(
    head: str, project: Path, refused: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    write_audit(project / "silo" / "state" / "St._Mary" / "audit.jsonl", CONTENTS[:1])
    assert "(St._Mary, north): choose one with --silo-name" in refused("silo", "audit")
    assert main(["silo", "audit", "--silo-name", "St. Mary"]) == 0
    assert "St._Mary/audit.jsonl: 1 line\n" in capsys.readouterr().out
