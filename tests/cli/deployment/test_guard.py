"""A command that is killed with SIGKILL: what it started ends, what others started goes on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

from fedsynth.cli.deployment.processes import is_alive, kill_marked

COMMAND = """
import os, subprocess, sys, time
from fedsynth.cli.deployment.processes import guarded
with guarded("TEST_MARK", "mine"):
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    child = "import os, subprocess, time; os.environ.pop('TEST_MARK');" + (
        f"p = subprocess.Popen({sleep!r}, start_new_session=True); print(p.pid, flush=True); time.sleep(600)"
    )
    for mark, code in (("mine", child), ("other", child)):
        environment = {**os.environ, "TEST_MARK": mark}
        process = subprocess.Popen([sys.executable, "-c", code], env=environment, start_new_session=True)
        print(process.pid, flush=True)
    time.sleep(600)
"""


def test_what_a_killed_command_started_ends_and_others_go_on(tmp_path: Path) -> None:
    """Each child starts one that has no mark, as Ray's processes that write their titles over it."""
    with subprocess.Popen([sys.executable, "-c", COMMAND], stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout is not None
        for _ in range(4):
            command.stdout.readline()
        mine = with_children("mine")
        others = with_children("other")
        assert (len(mine), len(others)) == (2, 2)
        command.kill()
        command.wait()
        try:
            deadline = time.monotonic() + 60
            while any(map(is_alive, mine)):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            assert all(map(is_alive, others))
        finally:
            assert kill_marked("other", "TEST_MARK") == 2
    assert not any(map(is_alive, others))


def with_children(mark: str) -> list[int]:
    found = []
    for process in psutil.process_iter():
        if environment_of(process).get("TEST_MARK") == mark and process.pid != os.getpid():
            found += [process.pid, *(child.pid for child in process.children())]
    return found


def environment_of(process: psutil.Process) -> dict[str, str]:
    try:
        return dict(process.environ())
    except (psutil.Error, OSError):
        return {}
