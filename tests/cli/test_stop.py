from __future__ import annotations

from pathlib import Path

import pytest

from fedsynth.cli import main


def test_nothing_to_stop(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stop"]) == 0
    assert capsys.readouterr().out == f"no local SuperLink of {project / '.flwr'} is running\n"
    assert list(project.iterdir()) == []


def test_number_of_superlinks_is_told(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fedsynth.cli.stop.stop_superlinks", lambda home: 2)
    assert main(["stop"]) == 0
    assert capsys.readouterr().out == f"stopped 2 SuperLink(s) of {project / '.flwr'}\n"


def test_arguments_are_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stop", "now"]) == 2
    assert "fedsynth stop takes no arguments, not 'now'" in capsys.readouterr().err
