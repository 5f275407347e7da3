from __future__ import annotations

import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_flower import FakeFlower

from fedsynth.cli import main
from fedsynth.cli.deployment.link_folder import Connection
from fedsynth.cli.deployment.link_run import run_on_link
from fedsynth.cli.stopping import StoppedError, stopped_by_signals
from fedsynth.output import RunFolder


@pytest.fixture
def commands(flower: FakeFlower, project: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], Connection]]:
    """A link, and what would be run on it; each run leaves results."""
    assert main(["link", "init", "--port", "19000"]) == 0
    seen: list[tuple[list[str], Connection]] = []

    def run(command: list[str], connection: Connection) -> None:
        seen.append((command, connection))
        settings = settings_of(command)
        RunFolder(Path(settings["output-dir"]) / settings["run-name"]).write_results({})

    monkeypatch.setattr("fedsynth.cli.run.run_on_link", run)
    return seen


def settings_of(command: list[str]) -> dict[str, Any]:
    return tomllib.loads(Path(command[command.index("--run-config") + 1]).read_text())


def test_silos_of_a_link_take_the_place_of_a_dataset(
    commands: list[tuple[list[str], Connection]], flower: FakeFlower, project: Path
) -> None:
    assert main(["run", "--superlink", "link", "--num-clients", "3", "--reference-root", "mine"]) == 0
    ((command, connection),) = commands
    assert flower.commands == [], "no simulation"
    assert command[:2] == ["flwr", "run"]
    assert command[3:5] == ["link", "--stream"]
    assert "--federation-config" not in command
    settings = settings_of(command)
    assert (settings["dataset"], settings["num-clients"]) == ("silos", 3)
    assert settings["output-dir"] == str(project / "runs")
    assert settings["reference-root"] == str(project / "mine")
    assert settings["run-name"].endswith("-dfd-silos-0")
    assert (connection.address, connection.home) == ("localhost:19000", project / "link" / "flwr")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--superlink", "link", "--dataset", "digits"], "with --superlink the images are the silos' own"),
        (["--dataset", "silos"], "dataset = 'silos': the silos are real; give --superlink LINK"),
        (["--superlink", "absent"], "superlink = 'absent': there is no such link folder"),
        (["--superlink", "link", "--strategy", "centralised"], "real silos do not show their images"),
    ],
)
def test_contradictions_are_one_line(
    words: list[str], said: str, commands: list[tuple[list[str], Connection]], refused: Callable[..., str]
) -> None:
    assert said in refused("run", *words)
    assert commands == []


def test_run_is_resumed_on_the_link(
    commands: list[tuple[list[str], Connection]], project: Path, refused: Callable[..., str]
) -> None:
    assert main(["run", "--superlink", "link", "--run-name", "first"]) == 0
    folder = RunFolder(project / "runs" / "first")
    folder.write_config({"config": settings_of(commands.pop()[0]), "resolved": []})
    folder.results.unlink()
    assert "give --superlink LINK" in refused("run", "--resume", "runs/first")
    assert main(["run", "--resume", "runs/first", "--superlink", "link"]) == 0
    settings = settings_of(commands.pop()[0])
    assert settings["resume"] == str(folder.path)
    assert settings["dataset"] == "silos"


ELSEWHERE = """\
print('Successfully started run 4711')
print('fedsynth 10:00:00 run folder /srv/link/runs/first')
print('fedsynth 10:05:00 report  /srv/two words/first/report.html')
"""


def test_a_run_says_where_the_server_has_its_folder_once_it_has_ended(tmp_path: Path) -> None:
    connection = Connection("link.example.org:9092", tmp_path / "ca.crt", tmp_path / "home")
    assert run_on_link([sys.executable, "-c", ELSEWHERE], connection) == "/srv/two words/first"
    failed = ELSEWHERE.replace("report  ", "error: ")
    assert run_on_link([sys.executable, "-c", failed], connection) == ""


FAILS = """\
print('INFO : Starting')
print('fedsynth 10:00:00 error: 1 usable answers, 2 needed: silo-1')
print('Traceback (most recent call last):')
print('  File "app.py", line 1, in main')
print('fedsynth.errors.RunError: 1 usable answers, 2 needed: silo-1')
"""


def test_an_expected_failure_is_shown_without_its_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    connection = Connection("link.example.org:9092", tmp_path / "ca.crt", tmp_path / "home")
    assert run_on_link([sys.executable, "-c", FAILS], connection) == ""
    shown = capsys.readouterr().out.splitlines()[-2:]
    assert shown == ["INFO : Starting", "fedsynth 10:00:00 error: 1 usable answers, 2 needed: silo-1"]
    assert run_on_link([sys.executable, "-c", FAILS.replace("error: ", "")], connection) == ""
    assert "Traceback (most recent call last):" in capsys.readouterr().out


@pytest.mark.parametrize(("host", "fetched"), [("link.example.org", "link.example.org"), ("127.0.0.1", "HOST")])
def test_a_folder_that_lies_elsewhere_is_no_failure_and_can_be_fetched(
    host: str, fetched: str, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["link", "init"]) == 0
    monkeypatch.setattr("fedsynth.cli.run.run_on_link", lambda command, connection: "/srv/runs/first")
    words = ["--superlink", f"{host}:9092", "--root-certificates", "link/ca.crt", "--run-name", "first"]
    assert main(["run", *words]) == 0
    said = capsys.readouterr().out
    assert "the run has ended well, and the SuperLink's machine has its folder: /srv/runs/first" in said
    assert said.endswith(f"fetch them: scp -r {fetched}:/srv/runs/first {project}/runs\n")
    assert not (project / "runs" / "first").exists()


class Stops:
    """Stands in for ``flwr stop``: notes its words, and ends with a status."""

    def __init__(self, status: int) -> None:
        self.status, self.commands = status, list[list[str]]()

    def __call__(self, command: list[str], **named: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        return subprocess.CompletedProcess(command, self.status)


STARTS = "print('Successfully started run 4711', flush=True); print('more', flush=True); import time; time.sleep(600)"


@pytest.mark.parametrize(
    ("number", "status", "early"),
    [(signal.SIGTERM, 0, False), (signal.SIGINT, 0, True), (signal.SIGHUP, 1, False)],
)
def test_run_of_a_stopped_command_is_stopped_where_it_runs_or_is_said_to_go_on(
    number: signal.Signals, status: int, early: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stops = Stops(status)
    monkeypatch.setattr("fedsynth.cli.deployment.link_run.subprocess.run", stops)

    def interrupt(line: str, **named: Any) -> None:
        if ("more" in line) != early:
            signal.raise_signal(number)

    monkeypatch.setattr("fedsynth.cli.deployment.link_run.print", interrupt, raising=False)
    connection = Connection("localhost:1", tmp_path / "ca.crt", tmp_path / "home")
    code = f"print('Building', flush=True); {STARTS}"
    with pytest.raises(StoppedError) as stopped, stopped_by_signals():
        run_on_link([sys.executable, "-c", code], connection)
    assert stops.commands == [["flwr", "stop", "4711", "link"]]
    goes_on = f"run 4711 goes on at localhost:1, which did not answer; end it: FLWR_HOME={tmp_path}/home flwr stop 4711"
    assert stopped.value.said.startswith(goes_on if status else "")
    assert bool(stopped.value.said) == bool(status)
    assert (tmp_path / "home" / "config.toml").is_file()


def test_a_command_that_is_stopped_before_its_run_has_started_stops_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stops = Stops(0)
    monkeypatch.setattr("fedsynth.cli.deployment.link_run.subprocess.run", stops)
    monkeypatch.setattr("fedsynth.cli.deployment.link_run.ID_LIMIT", 0.1)
    monkeypatch.setattr(
        "fedsynth.cli.deployment.link_run.print", lambda *_, **__: signal.raise_signal(signal.SIGTERM), raising=False
    )
    code = "print('Building', flush=True); import time; time.sleep(600)"
    with pytest.raises(StoppedError) as stopped, stopped_by_signals():
        run_on_link([sys.executable, "-c", code], Connection("localhost:1", tmp_path / "ca.crt", tmp_path / "home"))
    assert (stops.commands, stopped.value.said) == ([], "")
