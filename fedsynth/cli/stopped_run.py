"""What a run leaves that a signal has stopped: a status that says so, and how to go on."""

from __future__ import annotations

import contextlib
import shlex
import socket
import sys
import time
from datetime import datetime
from pathlib import Path
from shutil import which
from typing import Any

from fedsynth.cli.deployment.processes import is_alive
from fedsynth.errors import UserError
from fedsynth.output import RunFolder

STOPPED = "stopped"
"""The state of such a run in ``status.json``, beside ``signal`` and ``resume``."""


def read_state(folder: RunFolder) -> dict[str, Any]:
    """Return what ``status.json`` holds; nothing if there is none that can be read."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return folder.read_status()
    return {}


def wait_for_server(folder: RunFolder, limit: float = 30.0) -> None:
    """Wait until the run's server, told to stop, has ended, if it is one of this machine: it writes a status last."""
    status, deadline = read_state(folder), time.monotonic() + limit
    here = status.get("state") == "running" and status.get("host") == socket.gethostname()
    while here and is_alive(int(status["pid"])) and time.monotonic() < deadline:
        time.sleep(0.1)


def note_stop(folder: RunFolder, before: dict[str, Any], signal: str, options: str = "") -> str:
    """Write into ``status.json`` that a signal stopped the run, all of whose processes have ended.

    Args:
        folder: the run's. It is removed if the run had written nothing yet that could be gone on with.
        before: its status when this command began.
        signal: name of the signal.
        options: those that the command to resume needs, such as ``--superlink link``.

    Returns:
        What has become of the run, and how to go on.
    """
    if not folder.config.is_file():
        with contextlib.suppress(OSError, UserError):
            folder.clear_torn_start()
        return "the run had not begun, and nothing is left to resume; give the same command again"
    status = read_state(folder)
    if status != before and status.get("state") == "finished":
        return f"the run had finished: {folder.report}"
    resume = f"fedsynth run --resume {shlex.quote(str(folder.path))}{options}"
    # A server that outlives its workers for a moment writes that the run has failed: the signal is the reason.
    if status and (status != before or status.get("state") == "running"):
        status.pop("error", None)
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        with contextlib.suppress(OSError, UserError):
            folder.write_status({**status, "state": STOPPED, "signal": signal, "resume": resume, "updated": now})
    return f"{_reached(folder)}; go on with '{_as_started(resume)}'"


def _as_started(command: str) -> str:
    """Return a command of ours as a shell finds it: by the path that it was started by, if its name is not found."""
    name, started = "fedsynth", Path(sys.argv[0])
    return command if which(name) or started.name != name else shlex.quote(str(started)) + command.removeprefix(name)


def _reached(folder: RunFolder) -> str:
    try:
        rounds = len(folder.read_metrics())
    except (OSError, UserError):
        rounds = 0
    if rounds:
        return f"the run stands after round {rounds}"
    return "no round had finished, only what silos have trained is kept"
