from __future__ import annotations

import signal
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


def test_interrupted_run_is_stopped_where_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped: list[list[str]] = []
    monkeypatch.setattr(
        "fedsynth.cli.deployment.link_run.subprocess.run", lambda command, **named: stopped.append(command)
    )
    code = "print('Successfully started run 4711'); print('more')"

    def interrupt_at_the_second_line(line: str, **named: Any) -> None:
        print(line, **named)
        if "more" in line:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("fedsynth.cli.deployment.link_run.print", interrupt_at_the_second_line, raising=False)
    before = signal.getsignal(signal.SIGTERM)
    connection = Connection("localhost:1", tmp_path / "ca.crt", tmp_path / "home")
    with pytest.raises(KeyboardInterrupt):
        run_on_link([sys.executable, "-c", code], connection)
    assert stopped == [["flwr", "stop", "4711", "link"]]
    assert signal.getsignal(signal.SIGTERM) == before
    assert "Successfully started run 4711" in capsys.readouterr().out
    assert (tmp_path / "home" / "config.toml").is_file()
