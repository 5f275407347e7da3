from __future__ import annotations

import argparse
import json
import os
import runpy
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from hand_made_runs import make_run, measured

from fedsynth.cli import COMMANDS, main, stop
from fedsynth.cli.sweeps.sweep_file import Sweep
from fedsynth.cli.sweeps.sweep_manifest import Entry, write_manifest
from fedsynth.errors import RunError, UserError


@pytest.mark.parametrize("words", [["--help"], []])
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


def test_a_mistyped_command_is_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rum", "--seed", "1"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown command 'rum': did you mean 'run'? (known: run, ")


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


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert (stopped.value.code, capsys.readouterr().out) == (0, f"fedsynth {version('fedsynth')}\n")


ROOT = Path(__file__).parents[2]

SLOW = ("torch", "torchvision", "diffusers", "ray", "flwr", "sklearn", "scipy", "datasets", "pyarrow", "rich")
"""Libraries that take long to import, and that no command needs that computes nothing."""

WATCHED = """
import contextlib, io, json, sys
from fedsynth.cli import main
found = {}
for words in json.loads(sys.argv[1]):
    before, said = set(sys.modules), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            status = main(words)
        except SystemExit as stopped:
            status = stopped.code
    slow = [name for name in json.loads(sys.argv[2]) if name in sys.modules and name not in before]
    found[" ".join(words)] = [status, slow, said.getvalue()]
print(json.dumps(found))
"""


def test_commands_that_compute_nothing_import_nothing_slow(tmp_path: Path) -> None:
    make_run(tmp_path / "runs", "first", measured(3.0))
    make_run(tmp_path / "runs", "second", measured(4.0), strategy="fedavg")
    entries = [Entry(name, 0, name, name, {}, "finished") for name in ("first", "second")]
    write_manifest(Sweep(tmp_path / "s.toml", tmp_path / "runs", ()), entries)
    status = {"state": "finished", "pid": 1, "round": 3, "rounds": 3, "updated": "2026-01-01T00:00:00+00:00"}
    (tmp_path / "runs" / "first" / "status.json").write_text(json.dumps(status))
    expected = {
        "--help": 0,
        "--version": 0,
        "rum": 2,
        "status": 0,
        "status runs/third": 2,
        "compare runs/first runs/second": 0,
        "table runs": 0,
        **{f"{command} --help": 0 for command in COMMANDS},
        "run --num-clientz 3": 2,
        "run --strategy fedavgg": 2,
        "run missing.toml": 2,
        "evaluate runs/first --real x --outptu y": 2,
        "stop": 0,
        "link init": 0,
        "silo init": 0,
    }
    code = [sys.executable, "-c", WATCHED, json.dumps([words.split() for words in expected]), json.dumps(SLOW)]
    environment = {**os.environ, "FLWR_HOME": str(tmp_path / "flwr")}
    done = subprocess.run(code, cwd=tmp_path, env=environment, check=True, capture_output=True, encoding="utf-8")
    found = json.loads(done.stdout)
    assert {words: status for words, (status, _, _) in found.items()} == expected, found
    assert {words: slow for words, (_, slow, _) in found.items() if slow} == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "runs", "silo"]


def test_flower_finds_both_apps_without_importing_what_they_compute_with() -> None:
    apps = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["flwr"]["app"]["components"]
    modules = [apps[side].split(":")[0] for side in ("serverapp", "clientapp")]
    # What ``flwr run`` does with their names before it starts anything.
    code = (
        "import json, sys; from importlib.util import find_spec;"
        "found = [find_spec(module) for module in json.loads(sys.argv[1])];"
        "print(all(found), [name for name in json.loads(sys.argv[2]) if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, json.dumps(modules), json.dumps(SLOW)]
    assert subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout == "True []\n"
