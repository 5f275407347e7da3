"""What commands print, on terminals that lack letters, for readers that go away, and under ``python -OO``."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hand_made_runs import make_run, measured

from fedsynth.cli import main
from fedsynth.config import KEYS

ROOT = Path(__file__).parents[2]


@pytest.fixture
def compare(tmp_path: Path) -> list[str]:
    """A command that prints letters beyond ASCII."""
    runs = [make_run(tmp_path / "rün", f"dfd-{k}", measured(7.0 + k), strategy="dfd", seed=k) for k in range(2)]
    return ["compare", *map(str, runs), "--output", str(tmp_path / "λ.html")]


def test_a_reader_that_goes_away_ends_a_command_quietly(
    compare: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", encoding="utf-8") as unread:
        monkeypatch.setattr(sys, "stdout", unread)
        assert main(compare) == 141
    assert capsys.readouterr().err == ""


def test_as_a_shell_sees_it() -> None:
    script = f"'{sys.executable}' -m fedsynth.cli --help | exec sleep 0; echo ${{PIPESTATUS[0]}}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout in ("0\n", "141\n")  # argparse itself ends with 0
    assert done.stderr == ""


@pytest.mark.parametrize(("encoding", "said"), [("ascii", rb"\xb1"), ("cp1252", b"\xb1"), ("utf-8", "±".encode())])
def test_what_the_terminal_lacks_is_printed_as_numbers(
    encoding: str, said: bytes, compare: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding=encoding))
    assert main(compare) == 0
    assert b" " + said + b" " in shown.getvalue()
    assert ("λ" if encoding == "utf-8" else r"\u03bb").encode() + b".html" in shown.getvalue()


def test_help_does_not_depend_on_docstrings() -> None:
    code = """
from fedsynth.cli import main
from fedsynth.config import KEYS
assert False, "dropped"
print(sorted({key.group for key in KEYS.values()}))
main(["--help"])
"""
    command = [sys.executable, "-OO", "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{sorted({key.group for key in KEYS.values()})}\n")
    assert "The ``fedsynth`` command" in done.stdout
    assert "Run one synthesis, in simulation or on a link" in done.stdout
