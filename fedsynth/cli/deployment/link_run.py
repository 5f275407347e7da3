"""A run on a SuperLink that is already there: start it, follow its log, and stop it when the user does."""

from __future__ import annotations

import contextlib
import re
import shlex
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

from fedsynth.cli.deployment.flower_output import LINE_START
from fedsynth.cli.deployment.link_folder import CONNECTION, Connection
from fedsynth.cli.deployment.machine import LOOPBACK
from fedsynth.cli.deployment.processes import environment_of, show
from fedsynth.cli.stopping import StoppedError
from fedsynth.text import printable

ID_LIMIT, STOP_LIMIT = 60.0, 90.0
"""Seconds in which Flower must say which run it has started, and in which it must stop one: on a busy machine its
command alone takes many of them to start."""

_STARTED = re.compile(r"Successfully started run (\d+)")
_REPORT = re.compile(r"fedsynth \d\d:\d\d:\d\d report  (/.+)/report\.html\s*$")
"""The last line of our log, as the server prints it."""
_LONGEST_PATH = 4096


def link_command(app: Path, setting: Path) -> list[str]:
    """Return the command that runs the app in a folder with the configuration in the file ``setting``."""
    return ["flwr", "run", str(app), CONNECTION, "--stream", "--run-config", str(setting)]


def run_on_link(command: Sequence[str], connection: Connection) -> str:
    """Run to the end. A signal that stops this command stops the run at the SuperLink too, which would go on.

    Returns:
        The run folder, as its path is on the SuperLink's machine; empty if the server has not written it to its end.

    Raises:
        StoppedError: a signal arrived; it says so if the run goes on nevertheless.
    """
    connection.write()
    environment = environment_of(connection.home)
    show(command, connection.home)
    # In a session of its own: Ctrl-C in a terminal would otherwise end it before it has said which run it started.
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    log = _RunLog(process)
    try:
        log.follow()
    except StoppedError as stopped:
        log.wait_for_id()
        if log.run_id and not _stop_at_link(log.run_id, environment):
            by_hand = f"FLWR_HOME={shlex.quote(str(connection.home))} flwr stop {log.run_id} {CONNECTION}"
            raise StoppedError(
                stopped.number,
                f"run {log.run_id} goes on at {connection.address}, which did not answer; end it: {by_hand}",
            ) from None
        raise
    finally:
        process.kill()
        process.communicate()
    return log.folder


def where_it_lies(folder: str, address: str, wanted: Path) -> str:
    """Return what to say of a run whose folder lies on the SuperLink's machine, or is another user's.

    Args:
        folder: it, there.
        address: ``HOST:PORT`` of the SuperLink.
        wanted: where it was to be here.
    """
    host = address.rpartition(":")[0]
    there = "HOST" if host.strip("[]") in LOOPBACK else host
    fetch = shlex.join(["scp", "-r", f"{there}:{folder}", str(wanted.parent)])
    return (
        f"the run has ended well, and the SuperLink's machine has its folder: {folder}\n"
        f"Flower brings back no files; fetch them: {fetch}"
    )


class _RunLog:
    """What ``flwr run --stream`` says, with the id of the run and its folder once they have been said."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.run_id = self.folder = ""

    def follow(self) -> None:
        """Print what is said; after our own error, no traceback of it."""
        failed = False
        for line in self._process.stdout or ():
            self._read(line)
            ours = LINE_START.match(line)
            failed |= bool(ours and line[ours.end() :].startswith("error: "))
            if ours or not failed:
                print(line, end="", flush=True)

    def wait_for_id(self) -> None:
        """Read on until the run has an id: Flower may have started it already."""
        limit = threading.Timer(ID_LIMIT, self._process.kill)
        limit.start()
        while not self.run_id and self._process.stdout and (line := self._process.stdout.readline()):
            self._read(line)
        limit.cancel()

    def _read(self, line: str) -> None:
        if found := _STARTED.search(line):
            self.run_id = found[1]
        if found := _REPORT.search(line):
            self.folder = printable(found[1], _LONGEST_PATH)


def _stop_at_link(run_id: str, environment: dict[str, str]) -> bool:
    with contextlib.suppress(subprocess.TimeoutExpired):
        command = ["flwr", "stop", run_id, CONNECTION]
        return subprocess.run(command, env=environment, check=False, timeout=STOP_LIMIT).returncode == 0
    return False
