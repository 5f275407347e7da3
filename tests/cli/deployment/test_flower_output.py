from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedsynth.cli.deployment.flower_output import echoed, failure, reason
from fedsynth.errors import UserError

AT = "fedsynth 10:20:30"
NO_RAY = """\
Starting local SuperLink on 127.0.0.1:36427...
\x1b[92mINFO \x1b[0m:      Starting Flower Simulation
\x1b[91mERROR \x1b[0m:     An exception occured!! libray.so: cannot open shared object file
\x1b[91mERROR \x1b[0m:     Traceback (most recent call last):
  File "ray/__init__.py", line 1, in <module>
    raise ImportError("libray.so: cannot open shared object file")
ImportError: libray.so: cannot open shared object file

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
    raise RuntimeError("Simulation Runtime crashed.") from ex
RuntimeError: Simulation Runtime crashed.
\x1b[91mERROR \x1b[0m:     Exit Code: 700
"""
NO_PORT = """\
Starting local SuperLink on 127.0.0.1:9...
╭─ Error ──────────────────────────────╮
│ Failed to start local SuperLink      │
│ within 15 s. See log:                │
│ /home/.flwr/local-superlink/x.log    │
╰──────────────────────────────────────╯
"""
OWN = """\
fedsynth 10:11:12 waiting for 3 silos
fedsynth 10:11:13 silo-1 left out: MessageError: no epsilon
fedsynth 10:11:14 error: 2 silos are connected, 3 wanted
Traceback (most recent call last):
fedsynth.errors.RunError: 2 silos are connected, 3 wanted
"""


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        (NO_RAY, "ImportError: libray.so: cannot open shared object file"),
        (NO_PORT, "Failed to start local SuperLink within 15 s. See log: /home/.flwr/local-superlink/x.log"),
        (OWN, "2 silos are connected, 3 wanted"),
        ("Starting\n", ""),
    ],
    ids=["no Ray", "no port", "own", "nothing"],
)
def test_the_true_reason_is_found(printed: str, expected: str) -> None:
    assert reason(printed.splitlines()) == expected


def test_only_files_that_are_there_are_named(tmp_path: Path) -> None:
    output, log = tmp_path / "output.txt", tmp_path / "log.txt"
    assert failure(output, log) == failure(None, log) == "; the reason stands above"
    log.write_text("2026-11-20 10:11:12,000 INFO error: of an earlier attempt\n")
    assert failure(None, log) == f"; the reason stands above and in {log}"
    output.write_text(NO_RAY)
    said = ": ImportError: libray.so: cannot open shared object file"
    assert failure(output, log) == f"{said} (more in {output} and {log})"


def say(words: str, output: int) -> int:
    command = [sys.executable, "-c", f"import sys; {words}"]
    return subprocess.run(command, stdout=output, stderr=output, check=False).returncode


def test_our_lines_are_shown_and_all_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run-logs" / "run.txt"
    said = f"INFO : Starting\n    warnings.warn(\n{AT} λ\n    Traceback\nray.warn\n    more\n{AT} torn"
    with echoed(path) as output:
        assert say(f"print({said!r}, end='')", output) == 0
    assert path.read_text() == said
    assert capsys.readouterr().out == f"{AT} λ\n    Traceback\n{AT} torn"
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"), echoed(tmp_path / "file" / "x"):
        pass


def test_output_that_does_not_fit_on_the_disk_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with echoed(Path("/dev/full")) as output:
        assert say(f"print('{AT} one', flush=True); print('{AT} two')", output) == 0
    assert capsys.readouterr().out == f"{AT} one\n{AT} two\n"


def test_a_process_whose_output_nobody_reads_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on = f"import time\nfor _ in range(9999): print('{AT} on', flush=True); time.sleep(0.01)"
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", encoding="utf-8") as unread, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", unread)
        with pytest.raises(BrokenPipeError), echoed(tmp_path / "run.txt") as output:
            assert say(on, output) != 0
        patched.undo()
        os.dup2(os.open(os.devnull, os.O_WRONLY), unread.fileno())
