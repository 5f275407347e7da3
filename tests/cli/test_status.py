from __future__ import annotations

import os
import socket
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fedsynth.cli import main
from fedsynth.cli.status import describe, state_of
from fedsynth.output import RunFolder

NOW = datetime.fromisoformat("2026-11-20T10:15:00+01:00")


def moment(seconds_ago: float) -> str:
    return (NOW - timedelta(seconds=seconds_ago)).isoformat()


def status_of(**changes: Any) -> dict[str, Any]:
    silos = {
        "north": {"message": "train", "at": moment(7), "seconds": 3.25, "loss": 0.1234567},
        "a long name": {"message": "train", "at": moment(100), "left-out": "no answer in time"},
    }
    given = {"state": "running", "pid": os.getpid(), "host": socket.gethostname(), "round": 3, "rounds": 20}
    return {**given, "updated": moment(2), "silos": silos, **changes}


def lines_of(status: dict[str, Any], rows: list[dict[str, Any]], state: str = "running") -> list[str]:
    return list(describe(RunFolder(Path("runs/first")), status, rows, state, NOW))


def test_running_run_tells_rounds_time_left_and_every_silo_s_last_answer() -> None:
    rows = [{"seconds": 99.0}, *[{"seconds": 4.0}] * 5, *[{"seconds": 6.0}] * 5]
    assert lines_of(status_of(), rows) == [
        "run     runs/first",
        "state   running, last sign of life 2 s ago",
        "rounds  3 of 20, about 1 min 25 s left",
        "silo    north        train 7 s ago, took 3 s, loss 0.1235",
        "silo    a long name  train 1 min 40 s ago: left out: no answer in time",
    ]


def test_before_the_first_round_nothing_is_guessed() -> None:
    said = lines_of(status_of(round=0, silos={}), [])
    assert said[2:] == ["rounds  0 of 20, time left unknown", "silos   none has answered yet"]


def test_failed_run_says_why_and_how_to_go_on_and_finished_one_names_its_report() -> None:
    said = lines_of(status_of(state="failed", error="round 3: no usable answer"), [{"seconds": 1.0}], "failed")
    assert said[1] == (
        "state   failed: round 3: no usable answer; 'fedsynth run --resume runs/first' goes on after the last round"
    )
    assert said[2] == "rounds  3 of 20"
    assert lines_of(status_of(), [], "finished")[1] == "state   finished: runs/first/report.html"


def test_stopped_run_is_gone_on_with_where_it_lies_now() -> None:
    noted = status_of(
        state="stopped", signal="SIGTERM", resume="fedsynth run --resume '/else where/first' --superlink l"
    )
    assert lines_of(noted, [], "stopped")[1] == (
        "state   stopped by SIGTERM; go on with 'fedsynth run --resume runs/first --superlink l'"
    )


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, "running"),
        ({"pid": 2**22 + 1}, "gone"),
        ({"pid": 2**22 + 1, "host": "elsewhere"}, "running"),
        ({"pid": 2**22 + 1, "state": "finished"}, "finished"),
        ({"pid": 2**22 + 1, "state": "failed"}, "failed"),
    ],
)
def test_run_whose_process_was_killed_is_gone_if_it_ran_here(changes: dict[str, Any], state: str) -> None:
    assert state_of(status_of(**changes)) == state


def test_newest_run_is_shown_and_failure_is_an_exit_status(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for age, (name, state) in enumerate((("new", "failed"), ("old", "finished"))):
        folder = RunFolder.create(project / "runs", name)
        folder.write_config({})
        folder.write_status(status_of(state=state))
        os.utime(folder.status, ns=(0, 10**9 * (10 - age)))
    assert main(["status"]) == 1
    assert "state   failed" in capsys.readouterr().out
    assert main(["status", "runs/old"]) == 0
    assert "state   finished" in capsys.readouterr().out


def test_missing_and_damaged_status_are_one_line(project: Path, refused: Callable[..., str]) -> None:
    assert f"no run in '{project / 'runs'}'" in refused("status")
    folder = RunFolder.create(project / "runs", "first")
    folder.write_config({})
    assert "has no status.json: the run has not begun" in refused("status", "runs/first")
    for content in ("{", "[1]", '{"state": "failed"}'):
        folder.status.write_text(content)
        assert "is damaged" in refused("status", "runs/first")
