from __future__ import annotations

import argparse
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from fedsynth.cli import COMMANDS, main, stop
from fedsynth.errors import RunError, UserError


@pytest.mark.parametrize("words", [["--help"], [], ["ru"]])
def test_help_lists_every_command_and_others_are_an_error(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    printed = capsys.readouterr()
    if words == ["--help"]:
        assert stopped.value.code == 0
        assert all(f"\n    {name} " in printed.out for name in COMMANDS)
    else:
        assert stopped.value.code == 2
        assert "usage: fedsynth" in printed.err


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UserError("set seed"), 2, "error: set seed"),
        (RunError("no silo"), 2, "error: no silo"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_are_one_line_and_a_status(
    error: BaseException, status: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(options: argparse.Namespace, rest: list[str]) -> int:
        raise error

    monkeypatch.setattr(stop, "execute", fail)
    assert main(["stop"]) == status
    assert capsys.readouterr().err.strip() == said


def test_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop, "execute", lambda options, rest: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        main(["stop"])


def test_module_runs_like_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Whole processes of it are started in tests/end_to_end."""
    monkeypatch.setattr(sys, "argv", ["fedsynth", "stop", "now"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("fedsynth.cli", run_name="__main__")
    assert stopped.value.code == 2
    assert capsys.readouterr().err.strip() == "error: fedsynth stop takes no arguments, not 'now'"


def test_stop_tells_the_number_of_superlinks(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["stop"]) == 0
    assert capsys.readouterr().out == f"no local SuperLink of {project / '.flwr'} is running\n"
    assert list(project.iterdir()) == []
    monkeypatch.setattr("fedsynth.cli.stop.stop_superlinks", lambda home: 2)
    assert main(["stop"]) == 0
    assert capsys.readouterr().out == f"stopped 2 SuperLink(s) of {project / '.flwr'}\n"


def test_commands_that_need_no_network_load_no_torch(tmp_path: Path) -> None:
    words = [["link", "init"], ["silo", "init"], ["stop"]]
    code = (
        f"import sys; from fedsynth.cli import main; assert not any(map(main, {words})) and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
