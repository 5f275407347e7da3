"""A deployment on this machine: one SuperLink and its silos as separate processes on 127.0.0.1, without TLS."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import psutil
import tomli_w

import fedsynth
from fedsynth.cli.deployment.flower import flower_environment, free_ports
from fedsynth.config import Scalar
from fedsynth.errors import RunError

START_SECONDS, GRACE_SECONDS = 120.0, 60.0


class Loopback:
    """A context manager that ends every process it has started, by process id, whatever happens.

    Args:
        folder: for Flower's state and the logs, one per process.

    Attributes:
        port: of the SuperLink.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_ports(1)[0]
        self._processes: list[subprocess.Popen[bytes]] = []
        root = str(Path(fedsynth.__file__).parents[1])
        # Silos here stand for machines of their own: their threads would wait for each other on the cores of one.
        paths = {"FLWR_HOME": str(folder / "flwr-home"), "PYTHONPATH": root}
        self._environment = {**flower_environment(), **paths, "OMP_NUM_THREADS": "1"}

    def __enter__(self) -> Loopback:
        home = self.folder / "flwr-home"
        home.mkdir(parents=True)
        link = {"address": f"127.0.0.1:{self.port}", "insecure": True}
        (home / "config.toml").write_text(
            tomli_w.dumps({"superlink": {"default": "loopback", "loopback": link}}), encoding="utf-8"
        )
        words = ["--insecure", "--host", "127.0.0.1", "--port", str(self.port)]
        self.start("superlink", [_script("flower-superlink"), *words, "--disable-runtime-dependency-installation"])
        self._wait_for_superlink()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Silos first: without a SuperLink they would try for long to take their leave.
        _end(self._processes[1:])
        _end(self._processes[:1])

    def start(self, name: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start a process that logs to ``<folder>/<name>.log``."""
        with (self.folder / f"{name}.log").open("wb") as log:
            # In a session of its own: Ctrl-C would end parents at once, and children could no longer be found.
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._processes.append(process)
        return process

    def start_silo(
        self,
        name: str,
        node_config: str = "",
        warm: bool = False,
        options: Sequence[str] = (),
        port: int | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a silo.

        Args:
            name: of its log.
            node_config: its ``--node-config``; empty: none.
            warm: keep its ClientApp warm.
            options: of ``python -m clients.warm.warm_silo``.
            port: where it finds the SuperLink; None: at the SuperLink's own.
        """
        words = ["--insecure", "--superlink", f"127.0.0.1:{port or self.port}"]
        words += ["--node-config", node_config] if node_config else []
        if warm:
            return self.start(name, [sys.executable, "-m", "clients.warm.warm_silo", *options, "--", *words])
        return self.start(name, [_script("flower-supernode"), *words, "--port", str(free_ports(1)[0])])

    def run(self, name: str, app: Path, config: Mapping[str, Scalar], timeout: float) -> str:
        """Run an app to its end; return what it logged.

        Raises:
            RunError: it failed, or took more than ``timeout`` seconds; says where its log is.
        """
        setting = self.folder / f"{name}.toml"
        setting.write_text(tomli_w.dumps(config), encoding="utf-8")
        command = [_script("flwr"), "run", str(app), "loopback", "--stream", "--run-config", str(setting)]
        process = self.start(name, command)
        log = self.folder / f"{name}.log"
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise RunError(f"{name} took more than {timeout:g} s; see {log}") from error
        if status:
            raise RunError(f"{name} failed with status {status}; see {log}:\n{log.read_text(encoding='utf-8')[-3000:]}")
        return log.read_text(encoding="utf-8")

    def _wait_for_superlink(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.2)
        raise RunError(f"the SuperLink did not start; see {self.folder / 'superlink.log'}")


def _script(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return list(psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Stop processes and what they have started; kill those that do not end by themselves."""
    family = [member for process in processes for member in _descendants(process.pid)]
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(deadline - time.monotonic(), 0.0))
        process.kill()
        process.wait()
    for member in psutil.wait_procs(family, timeout=GRACE_SECONDS)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
