"""Flower's long-lived processes: run one in the foreground, and leave nothing behind when it ends."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Protocol
from uuid import uuid4

import psutil

from fedsynth.cli.deployment.flower import descendants, end, flower_environment
from fedsynth.cli.stopping import SIGNALLED, handled_by

MARK = "FEDSYNTH_FOREGROUND"
"""Environment variable that tells the descendants of a command, however far they have got from their parents."""

_STANDARD_ERROR = 2
_LONGEST_LINE = 1 << 16
"""Bytes of a line without an end that are kept for its reader."""
_ATTEMPTS = 10
"""How often to look for processes that were started while others were killed."""


class Reader(Protocol):
    """Is told what a command says."""

    is_ending: bool
    """Whether the command has said that it ends by itself: it then has the grace period to do so."""

    def __call__(self, line: str) -> None:
        """Take one line, without its end."""


def environment_of(home: Path) -> dict[str, str]:
    """Return the environment for Flower's processes whose state lies in ``home``."""
    return {**flower_environment(), "FLWR_HOME": str(home)}


def show(command: Sequence[str], home: Path, python_path: str = "") -> None:
    """Print a command as a shell would take it, with its ``FLWR_HOME`` and, where it needs one, ``PYTHONPATH``."""
    variables = {"FLWR_HOME": str(home), **({"PYTHONPATH": python_path} if python_path else {})}
    words = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
    print(f"{' '.join(words)} {shlex.join(command)}\n", flush=True)


def run_in_foreground(
    command: Sequence[str],
    environment: Mapping[str, str],
    folder: Path,
    grace_period: float = 10.0,
    reader: Reader | None = None,
) -> int:
    """Run until it ends or this process is told to stop; then stop it and everything that it started.

    A second signal kills it at once. So does the death of this process.

    Args:
        command: its first word is found in the ``PATH`` of ``environment``.
        environment: of the process.
        folder: its working directory.
        grace_period: seconds in which it may end by itself before it is killed.
        reader: is told every line of its standard error, which is shown all the same.

    Returns:
        Its exit status, 1 if it had to be killed at its end; 128 + number of the signal that stopped it.
    """
    mark = uuid4().hex
    with guarded(MARK, mark):
        return _run_marked(command, {**environment, MARK: mark}, folder, grace_period, reader)


def _run_marked(
    command: Sequence[str], environment: Mapping[str, str], folder: Path, grace_period: float, reader: Reader | None
) -> int:
    told: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        told.append(number)
        if len(told) > 1:
            kill_marked(environment[MARK])

    with handled_by(stop):
        # In a session of its own: Ctrl-C in a terminal would otherwise reach its children before it can end them.
        errors = subprocess.PIPE if reader else None
        process = subprocess.Popen(command, env=environment, cwd=folder, start_new_session=True, stderr=errors)
        shown = _show_and_tell(process.stderr, reader) if process.stderr and reader else None
        try:
            status = _wait(process, told, grace_period, reader)
        finally:
            stop_marked(environment[MARK], grace_period)
            if shown:
                shown.join(grace_period)
    return SIGNALLED + told[0] if told else status


def stop_marked(mark: str, grace_period: float) -> None:
    """End every process whose environment holds ``mark``."""
    end(marked(mark), grace_period)


@contextlib.contextmanager
def guarded(variable: str, mark: str) -> Iterator[None]:
    """While the block runs, have the processes that are marked so killed when this process dies, however it dies.

    Flower detaches its SuperLink from whoever starts it, so that nothing between parent and child would reach it.

    Args:
        variable: environment variable of the processes.
        mark: its value.
    """
    guard = subprocess.Popen(
        [sys.executable, "-m", "fedsynth.cli.deployment.guard", variable, mark],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        guard.kill()
        guard.communicate()


def kill_marked(mark: str, variable: str = MARK) -> int:
    """Kill every process in whose environment ``variable`` is ``mark``, and its descendants; return how many.

    Parents die before their children: a server that saw its workers die would finish its round without them.
    """
    count = 0
    for _ in range(_ATTEMPTS):
        members = marked(mark, variable)
        if not members:
            break
        # Some of Ray's processes write their title over their environment.
        family = {process.pid: process for process in [*members, *descendants(members)]}
        for process in sorted(family.values(), key=lambda process: process.create_time()):
            with contextlib.suppress(psutil.Error):
                process.kill()
        _wait_for(family.values())
        count += len(family)
    return count


def _wait_for(processes: Iterable[psutil.Process], limit: float = 5.0) -> None:
    """Wait until killed processes run no more; one that its parent has not noticed yet counts as ended."""
    deadline = time.monotonic() + limit
    left = list(processes)
    while left and time.monotonic() < deadline:
        left = [process for process in left if is_alive(process.pid)]
        time.sleep(0.01)


def is_alive(process: int) -> bool:
    """Whether a process runs; one that has ended, and that its parent has not noticed yet, does not."""
    try:
        return bool(psutil.Process(process).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def marked(mark: str, variable: str = MARK) -> list[psutil.Process]:
    """Return the other processes in whose environment ``variable`` is ``mark``, as far as this user may look."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(variable) == mark and process.pid != os.getpid():
                found.append(process)
    return found


def _show_and_tell(stream: IO[bytes], reader: Reader) -> threading.Thread:
    def copy() -> None:
        rest = b""
        while chunk := os.read(stream.fileno(), 1 << 16):
            with contextlib.suppress(OSError):  # nobody looks: the command must not stand still for that
                os.write(_STANDARD_ERROR, chunk)
            *lines, rest = (rest + chunk).split(b"\n")
            rest = rest[-_LONGEST_LINE:]
            for line in lines:
                reader(line.decode("utf-8", "replace"))

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    return thread


def _wait(process: subprocess.Popen[bytes], told: list[int], grace_period: float, reader: Reader | None) -> int:
    since = None
    while not told:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(0.1)
        if reader and reader.is_ending:
            since = since or time.monotonic()
            if time.monotonic() - since > grace_period:
                process.kill()
                process.wait()
                return 1
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(grace_period)
    process.kill()
    return process.wait()
