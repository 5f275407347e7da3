from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from fedsynth.cli.processes import MARK, marked, run_in_foreground

CHILD = """
import subprocess, sys, time
stubborn = "import os, signal, time; os.setsid(); signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(100)"
child = subprocess.Popen([sys.executable, "-c", stubborn])
open(sys.argv[1], "w").write(str(child.pid))
time.sleep(100)
"""
WRAPPER = """
import os, sys
from pathlib import Path
from fedsynth.cli.processes import run_in_foreground
command = [sys.executable, "-c", sys.argv[1], sys.argv[2]]
sys.exit(run_in_foreground(command, dict(os.environ), Path.cwd(), patience=1.0))
"""


def wait_for(path: Path) -> psutil.Process:
    deadline = time.monotonic() + 60
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return psutil.Process(int(path.read_text()))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopping_the_wrapper_stops_everything_even_what_hides_in_a_session_of_its_own(
    number: signal.Signals, tmp_path: Path
) -> None:
    words = [sys.executable, "-c", WRAPPER, textwrap.dedent(CHILD), str(tmp_path / "pid")]
    wrapper = subprocess.Popen(words)
    try:
        grandchild = wait_for(tmp_path / "pid")
        child = grandchild.parent()
        assert child is not None
        time.sleep(0.3)
        wrapper.send_signal(number)
        assert wrapper.wait(60) == 128 + number
        assert not child.is_running()
        assert not grandchild.is_running()
    finally:
        wrapper.kill()


def test_status_of_the_command_is_handed_on_and_its_descendants_end(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)']);"
        " open(sys.argv[1], 'w').write(str(p.pid)); sys.exit(7)"
    )
    assert run_in_foreground([sys.executable, "-c", code, "pid"], dict(os.environ), tmp_path) == 7
    with pytest.raises(psutil.NoSuchProcess):
        psutil.Process(int((tmp_path / "pid").read_text()))


def test_processes_without_the_mark_are_left_alone() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"], env={**os.environ, MARK: "mine"})
    try:
        time.sleep(0.3)
        assert [found.pid for found in marked("mine")] == [process.pid]
        assert marked("another") == []
    finally:
        process.kill()
        process.wait()
