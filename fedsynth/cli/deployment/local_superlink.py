"""The SuperLink of a simulation on this machine, started before ``flwr run`` looks for it."""

from __future__ import annotations

import contextlib
import http.client
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from fedsynth.cli.deployment.flower import stop_superlinks
from fedsynth.cli.deployment.machine import LOOPBACK, PORT_VARIABLES
from fedsynth.errors import RunError

START_LIMIT = 120.0
"""Seconds in which a SuperLink must answer: on a busy machine its imports alone take more than Flower's own 15."""

_PROBE_INTERVAL, _PROBE_TIMEOUT = 0.1, 1.0


def start_superlink(home: Path, environment: Mapping[str, str], output: Path) -> bool:
    """Start the SuperLink as ``flwr run`` would, which then finds it, and wait until it answers.

    Args:
        home: ``FLWR_HOME``, which holds its state and its log.
        environment: in which it is started; names its ports.
        output: where its words are appended if it ends at once.

    Returns:
        Whether it answers; False if it has ended.

    Raises:
        RunError: it does neither within :data:`START_LIMIT`.
    """
    folder = home / "local-superlink"
    folder.mkdir(parents=True, exist_ok=True)
    port, control = (environment[name] for name in PORT_VARIABLES)
    command = ["flower-superlink", "--insecure", "--simulation", "--isolation", "subprocess", "--host", LOOPBACK[0]]
    command += ["--port", port, "--control-api-address", f"{LOOPBACK[0]}:{control}"]
    command += ["--database", str(folder / "state.db"), "--log-file", str(folder / "superlink.log")]
    command += ["--log-rotation-interval-hours", "24", "--log-rotation-backup-count", "7"]
    # Its descendants say all that runs say once more, as long as it lives: nobody listens.
    process = subprocess.Popen(
        command,
        # Whether there is a newer Flower, "flwr run" asks.
        env={**environment, "FLWR_DISABLE_UPDATE_CHECK": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + START_LIMIT
    while process.poll() is None:
        if _answers(int(port)):
            return True
        if time.monotonic() > deadline:
            raise RunError(
                f"Flower's SuperLink does not answer {START_LIMIT:.0f} s after its start: the machine may be busy with"
                f" other work; its log: {folder / 'superlink.log'}"
            )
        time.sleep(_PROBE_INTERVAL)
    _ask_once_more(command, home, environment, output)
    return False


def _answers(port: int) -> bool:
    """Whether a SuperLink answers; asked without urllib, which would ask a proxy."""
    connection = http.client.HTTPConnection(LOOPBACK[0], port, timeout=_PROBE_TIMEOUT)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/health")
        return 200 <= connection.getresponse().status < 300
    return False


def _ask_once_more(command: list[str], home: Path, environment: Mapping[str, str], output: Path) -> None:
    """Append to ``output`` what a SuperLink says that ends at its start; stop it if it starts this time."""
    limit = START_LIMIT / 6
    try:
        with contextlib.suppress(subprocess.TimeoutExpired, OSError), output.open("ab") as kept:
            subprocess.run(command, env=dict(environment), stdout=kept, stderr=kept, timeout=limit, check=False)
    finally:
        stop_superlinks(home)  # killing it would leave what it has started
