from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_flower import FakeFlower

from fedsynth.cli import main
from fedsynth.cli.stopped_run import note_stop, read_state, wait_for_server
from fedsynth.cli.stopping import StoppedError
from fedsynth.output import RunFolder

RUNNING = {
    "state": "running",
    "pid": 7,
    "host": "here",
    "round": 2,
    "rounds": 9,
    "updated": "2026-11-20T10:00:00+00:00",
}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder.create(tmp_path, "a run")
    folder.write_config({"config": {}, "resolved": []})
    return folder


@pytest.mark.parametrize("state", ["running", "failed"])
def test_a_stopped_run_says_by_what_and_how_to_go_on(
    state: str, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its server may have called it failed, when it saw its workers die."""
    folder.append_metrics({"round": 1})
    folder.append_metrics({"round": 2})
    folder.write_status({**RUNNING, "state": state, "error": "ActorDiedError"})
    monkeypatch.setattr("fedsynth.cli.stopped_run.which", lambda name: "/usr/bin/fedsynth")
    said = note_stop(folder, {**RUNNING, "round": 1}, "SIGTERM", " --superlink link")
    resume = f"fedsynth run --resume '{folder.path}' --superlink link"
    assert said == f"the run stands after round 2; go on with '{resume}'"
    status = read_state(folder)
    assert status.pop("updated") > RUNNING["updated"]
    noted = "fedsynth run --resume 'a run' --superlink link"
    expected = {**RUNNING, "state": "stopped", "signal": "SIGTERM", "resume": noted}
    assert status == {key: value for key, value in expected.items() if key != "updated"}


def test_it_goes_on_with_the_program_that_was_started(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.write_status(RUNNING)
    monkeypatch.setattr("fedsynth.cli.stopped_run.which", lambda name: None)
    monkeypatch.setattr("sys.argv", [".venv/bin/fedsynth", "run"])
    assert f"go on with '.venv/bin/fedsynth run --resume '{folder.path}''" in note_stop(folder, {}, "SIGTERM")
    assert read_state(folder)["resume"] == "fedsynth run --resume 'a run'"


def test_before_the_first_round_ends_it_starts_there_again(folder: RunFolder) -> None:
    folder.write_status(RUNNING)
    assert note_stop(folder, {}, "SIGHUP").startswith("no round had finished, only what silos have trained is kept; go")
    assert read_state(folder)["signal"] == "SIGHUP"


@pytest.mark.parametrize("state", ["finished", "failed"])
def test_status_of_before_stays_where_the_run_had_not_begun_to_go_on(state: str, folder: RunFolder) -> None:
    earlier: dict[str, Any] = {**RUNNING, "state": state}
    folder.write_status(earlier)
    assert "go on with" in note_stop(folder, earlier, "SIGTERM")
    assert read_state(folder) == earlier


def test_a_run_that_had_finished_by_then_is_finished(folder: RunFolder) -> None:
    folder.write_status({**RUNNING, "state": "finished"})
    assert note_stop(folder, RUNNING, "SIGINT") == f"the run had finished: {folder.report}"
    assert read_state(folder)["state"] == "finished"


def test_of_a_run_that_had_not_begun_nothing_is_left(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "run")
    folder.log.write_text("run folder")
    (folder.path / ".config.json.0.part").write_text("{")
    assert "nothing is left to resume; give the same command again" in note_stop(folder, {}, "SIGINT")
    assert not folder.path.exists()


def test_a_server_on_this_machine_that_writes_last_is_waited_for(folder: RunFolder) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as server:
        folder.write_status({**RUNNING, "pid": server.pid, "host": socket.gethostname()})
        wait_for_server(folder, limit=0.2)
        assert server.poll() is None
        server.kill()
        wait_for_server(folder, limit=60)
        assert server.poll() is not None
    folder.write_status({**RUNNING, "pid": os.getpid(), "host": "elsewhere"})
    wait_for_server(folder, limit=60)


@pytest.mark.parametrize(
    ("leave", "said"), [("nothing", "had not begun"), ("config", "go on with 'fedsynth run --resum")]
)
def test_last_line_of_the_command_and_its_status(
    leave: str, said: str, flower: FakeFlower, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flower.leave, flower.raises = leave, StoppedError(15)
    assert main(["run", "--run-name", "r"]) == 143
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("stopped by SIGTERM: ")
    assert said in last
    if leave == "nothing":
        assert not (project / "runs" / "r").exists()
        return
    folder = project / "runs" / "r"
    assert json.loads((folder / "status.json").read_text())["state"] == "stopped"
    assert main(["status", "runs/r"]) == 0
    assert "state   stopped by SIGTERM; go on with 'fedsynth run --resume runs/r'" in capsys.readouterr().out
