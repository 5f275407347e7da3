"""A process that outlives a command which is killed, and ends what that had started."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from fedsynth.cli.deployment.processes import kill_marked


@contextmanager
def guarded(variable: str, mark: str) -> Iterator[None]:
    """While the block runs, have the processes that are marked so killed when this process dies, however it dies.

    Flower detaches its SuperLink from whoever starts it, so that no link between parent and child would reach it.

    Args:
        variable: environment variable of the processes.
        mark: its value.
    """
    guard = subprocess.Popen(
        [sys.executable, "-m", __name__, variable, mark],
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


if __name__ == "__main__":
    sys.stdin.read()  # Ends with the process that holds the other end.
    kill_marked(sys.argv[2], sys.argv[1])
