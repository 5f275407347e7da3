from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkProcess
from pathlib import Path

import psutil
import pytest

from fedsynth.cli.deployment.processes import MARK, marked, run_in_foreground

CHILD = """
import subprocess, sys, time
stubborn = "import os, signal, time; os.setsid(); signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(100)"
child = subprocess.Popen([sys.executable, "-c", stubborn])
open(sys.argv[1], "w").write(str(child.pid))
time.sleep(100)
"""


def wait_for(path: Path) -> psutil.Process:
    deadline = time.monotonic() + 60
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return psutil.Process(int(path.read_text()))


def has_ended(process: psutil.Process) -> bool:
    """Nothing of it runs; whether its last parent has noticed is no concern of ours."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def start_wrapper(folder: Path, grace_period: float) -> ForkProcess:
    """A process that runs a child in the foreground, whose own child writes its number."""
    command = [sys.executable, "-c", CHILD, str(folder / "pid")]

    def wrap() -> None:
        os._exit(run_in_foreground(command, dict(os.environ), folder, grace_period=grace_period))

    wrapper = multiprocessing.get_context("fork").Process(target=wrap)
    wrapper.start()
    return wrapper


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopping_the_wrapper_stops_everything_even_what_hides_in_a_session_of_its_own(
    number: signal.Signals, tmp_path: Path
) -> None:
    wrapper = start_wrapper(tmp_path, 1.0)
    try:
        grandchild = wait_for(tmp_path / "pid")
        child = grandchild.parent()
        assert child is not None
        time.sleep(0.3)
        assert wrapper.pid is not None
        os.kill(wrapper.pid, number)
        wrapper.join(60)
        assert wrapper.exitcode == 128 + number
        assert has_ended(child)
        assert has_ended(grandchild)
    finally:
        wrapper.kill()


@pytest.mark.parametrize("second", [signal.SIGKILL, signal.SIGTERM])
def test_a_wrapper_that_is_killed_takes_what_it_started_with_it(second: signal.Signals, tmp_path: Path) -> None:
    """It is killed with SIGKILL, or hurried by a second signal while the grandchild ignores the first."""
    wrapper = start_wrapper(tmp_path, 600.0)
    try:
        grandchild = wait_for(tmp_path / "pid")
        child = grandchild.parent()
        assert child is not None
        assert wrapper.pid is not None
        if second == signal.SIGTERM:
            time.sleep(0.3)  # until the grandchild ignores signals
            os.kill(wrapper.pid, signal.SIGTERM)
            wait_until(lambda: has_ended(child))
        os.kill(wrapper.pid, second)
        wait_until(lambda: has_ended(child) and has_ended(grandchild))
        wrapper.join(60)
        assert wrapper.exitcode == (-signal.SIGKILL if second == signal.SIGKILL else 128 + signal.SIGTERM)
    finally:
        wrapper.kill()


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


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
        assert [found.pid for found in marked("mine")] == [process.pid]
        assert marked("another") == []
    finally:
        process.kill()
        process.wait()
