"""Flower's processes: their environment, and how to end them."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import psutil

from fedsynth.cli.deployment.machine import PORT_VARIABLES, adjusted
from fedsynth.errors import UserError

SIMULATION = "FEDSYNTH_SIMULATION"
"""Environment variable of all that one simulated run has started; its value is another for every run."""


def flower_home() -> Path:
    """Return ``FLWR_HOME``, by default ``.flwr`` in the working directory, so that projects do not share state."""
    return Path(os.environ.get("FLWR_HOME", ".flwr")).absolute()


def flower_environment(ray_address: str = "") -> dict[str, str]:
    """Return the environment for ``flwr`` and everything it starts.

    Without per-run dependency installation, since the SuperLink's environment has all; on free ports, because a
    SuperLink of another project on Flower's default ports would run this app in that project's environment; and with
    what :func:`~fedsynth.cli.deployment.machine.adjustments` sets right.

    Args:
        ray_address: of the cluster that simulated silos work on; its token is the user's to give. Empty: Ray is started
            here.
    """
    scripts = str(Path(sys.executable).parent)
    environment = {
        **adjusted(os.environ),
        "FLWR_HOME": str(flower_home()),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PATH": os.pathsep.join([scripts, os.environ.get("PATH", "")]),
    }
    environment.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    if ray_address:
        environment["RAY_ADDRESS"] = ray_address
    else:
        for variable, value in ray_environment().items():
            environment.setdefault(variable, value)
        # Otherwise Ray would join a cluster that somebody has started on this machine.
        environment["RAY_ADDRESS"] = "local"
    for variable, port in zip(PORT_VARIABLES, free_ports(len(PORT_VARIABLES)), strict=True):
        environment.setdefault(variable, str(port))
    return environment


def ray_environment() -> dict[str, str]:
    """Return what keeps strangers out of a simulation: Ray runs what is sent to its ports, under this user.

    With ``RAY_AUTH_MODE=token`` all of Ray's processes ask for a token, new for every SuperLink. Ray's processes listen
    on every interface of Linux unless its clusters are off, which it knows for Windows and macOS only, by name.
    """
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }


def free_ports(count: int) -> list[int]:
    """Return ports of this machine that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(s.getsockname()[1]) for s in sockets]
    for s in sockets:
        s.close()
    return ports


def prepare_home(home: Path) -> None:
    """Give a new ``FLWR_HOME`` a connection named ``local`` that simulates.

    Raises:
        UserError: the folder cannot be written.
    """
    config = home / "config.toml"
    if config.exists():
        return
    try:
        home.mkdir(parents=True, exist_ok=True)
        config.write_text(
            '[superlink]\ndefault = "local"\n\n[superlink.local]\naddress = ":local:"\n', encoding="utf-8"
        )
    except OSError as error:
        raise UserError(f"FLWR_HOME = '{home}': {error.strerror}; set it to a folder that can be written") from error


def superlinks(home: Path) -> list[psutil.Process]:
    """Return the local SuperLinks that belong to ``home``."""
    mark = str(home / "local-superlink")
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if any("flower-superlink" in word for word in words) and any(word.startswith(mark) for word in words):
            found.append(process)
    return found


def stop_superlinks(home: Path, grace_period: float = 10.0) -> int:
    """Stop the SuperLinks of ``home`` and what simulated runs left of it; return how many SuperLinks there were."""
    links = superlinks(home)
    found = [*links, *_simulated(home)]
    family = {process.pid: process for process in [*found, *descendants(found)]}
    end(list(family.values()), grace_period)
    return len(links)


def end(processes: Sequence[psutil.Process], grace_period: float) -> None:
    """Ask processes to end, and kill those that have not after ``grace_period`` seconds."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=grace_period)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=grace_period)


def descendants(processes: Iterable[psutil.Process]) -> Iterator[psutil.Process]:
    """Yield what processes have started, and what that has, as far as it can be seen."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            yield from process.children(recursive=True)


def _simulated(home: Path) -> list[psutil.Process]:
    """Return the processes of simulated runs under ``home``, however far they have got from their SuperLink."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            environment = process.environ()
            if SIMULATION in environment and environment.get("FLWR_HOME") == str(home):
                found.append(process)
    return found
