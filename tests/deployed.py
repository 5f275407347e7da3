"""A real deployment on the loopback: a link with TLS, silos, and runs on it, all through the ``fedsynth`` command."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock
from uuid import uuid4

import psutil
from acting_settings import acting
from real_silos import run_real, write_silos

from fedsynth.cli import main
from fedsynth.cli.deployment.flower import free_ports
from fedsynth.output import RunFolder
from fedsynth.policy import POLICY_FILE, SiloPolicy, document
from fedsynth.privacy.sums.key_files import KNOWN_FILE

ROOT = Path(__file__).parents[1]
MARK = "FEDSYNTH_TEST_DEPLOYMENT"
TINY = {
    "num-clients": 3,
    "train-steps": 40,
    "block-out-channels": "8,8",
    "screening": "false",
    "copy-check": "false",
    "num-samples": 60,
    "dfd-rounds": 3,
    "num-rounds": 2,
    "sampling-steps": 4,
    "evaluate": "false",
    "fast-replies": "true",
}


LIMIT_SECONDS = 600
"""What a run, or a condition, may take: several times what it takes on two cores."""


class Deployment:
    """One link and its silos in a folder; whatever is started ends with :meth:`close`, by process id.

    Args:
        folder: everything is written below it.
        front: whether nginx stands before the SuperLink.
    """

    def __init__(self, folder: Path, front: bool = False) -> None:
        self.folder, self._mark = folder, uuid4().hex
        self.port, self.superlink_port = free_ports(2)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        words = ("--front", "nginx", "--superlink-port", str(self.superlink_port)) if front else ()
        self.command("link", "init", "--port", str(self.port), *words)

    def log(self, name: str) -> str:
        """What a process has said so far."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def all_logs(self) -> str:
        """The end of what every process has said, for the message of a failure."""
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-2500:]}" for path in self.folder.glob("*.log")
        )

    def start_link(self) -> None:
        """Start the SuperLink and wait until it listens."""
        self.start("link", "link", "start")
        self.wait("link", lambda: self._listens())

    def register(self, *names: str, **policy: Any) -> None:
        """Make and register the keys of silos; their policy is strict, but for exact counts and rounds, and ``policy``.

        Noise that no seed decides would give every run other images. Some silos hold two dozen images.
        """
        answers = (*SiloPolicy().answers, "train")
        words = document(SiloPolicy(**{"answers": answers, "count_noise": 0, "least_training_images": 9, **policy}))
        for name in names:
            (self.folder / f"silo-{name}").mkdir(mode=0o700)
            (self.folder / f"silo-{name}" / POLICY_FILE).write_text(words, encoding="utf-8")
            self.command("silo", "init", "--folder", f"silo-{name}")
            self.command("link", "register", f"silo-{name}/silo.pub", "--name", name)

    def register_aggregators(self, *names: str) -> None:
        """Make and register the keys of nodes that hold no images."""
        for name in names:
            self.command("silo", "init", "--folder", f"silo-{name}", "--role", "aggregator", "--silo-name", name)
            self.command("link", "register", f"silo-{name}/silo.pub", "--name", name)

    def exchange_keys(self, *names: str, aggregators: Sequence[str] = ()) -> None:
        """Collect the keys of silos, and of aggregators beside them, and give each its copy."""
        words = [f"{name}=silo-{name}/sums.pub" for name in (*names, *aggregators)]
        beside = ("--aggregators", *words[len(names) :]) if aggregators else ()
        self.command("link", "keys", *words[: len(names)], *beside)
        for name in (*names, *aggregators):
            shutil.copy(self.folder / "link" / KNOWN_FILE, self.folder / f"silo-{name}" / KNOWN_FILE)

    def start_silo(self, name: str, data: Path, *words: str, authority: str = "link/ca.crt") -> None:
        """Start the SuperNode of a silo that has a key; its log is ``<name>.log``."""
        given = ["--superlink", f"localhost:{self.port}", "--root-certificates", authority, "--data-path", str(data)]
        self.start(name, "silo", "start", "--folder", f"silo-{name}", "--silo-name", name, *given, *words)

    def start_aggregator(self, name: str) -> None:
        """Start the SuperNode of an aggregator, warm."""
        given = ["--superlink", f"localhost:{self.port}", "--root-certificates", "link/ca.crt", "--warm"]
        self.start(name, "silo", "start", "--folder", f"silo-{name}", *given)

    def start_silo_of(self, name: str, *words: str) -> None:
        """Start a silo with the images that :func:`deployed` wrote for it, warm unless the first word is ``stock``."""
        stock = words[:1] == ("stock",)
        self.start_silo(name, self.folder / "images" / name, *(words[1:] if stock else ("--warm", *words)))

    def run(self, name: str, **changes: str | float) -> RunFolder:
        """Run to the end; changes in snake case."""
        self.start_run(name, **changes)
        return self.finish_run(name)

    def start_run(self, name: str, **changes: str | float) -> None:
        """Start a run whose log is ``<name>.log``."""
        config = acting(TINY, {"dataset": "silos", "run-name": name, **changes})
        words = [word for key, value in config.items() for word in (f"--{key}", str(value))]
        self.start(name, "run", "--superlink", "link", *words)

    def finish_run(self, name: str, folder: str = "") -> RunFolder:
        """Wait for the end of a run that has results, in ``folder`` if that is not called like the process."""
        assert self.ended(name) == 0, self.all_logs()
        return RunFolder(self.folder / "runs" / (folder or name))

    def rounds_done(self, name: str) -> int:
        """Rounds of a run so far."""
        return len(RunFolder(self.folder / "runs" / name).read_metrics())

    def start(self, name: str, *words: str) -> None:
        """Start a ``fedsynth`` command in the background."""
        with (self.folder / f"{name}.log").open("wb") as log:
            command = [sys.executable, "-m", "fedsynth.cli", *words]
            self._processes[name] = subprocess.Popen(
                command, cwd=self.folder, env=self._environment(), stdout=log, stderr=subprocess.STDOUT
            )

    def command(self, *words: str) -> None:
        """Run a ``fedsynth`` command that ends by itself, in this process: importing the project again takes longer."""
        with contextlib.chdir(self.folder), mock.patch.dict(os.environ, self._environment()):
            assert main(words) == 0

    def wait(self, name: str, condition: Callable[[], bool]) -> None:
        """Wait for a condition while a process lives."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while not condition():
            assert self._processes[name].poll() is None, f"{name} has ended\n{self.all_logs()}"
            assert time.monotonic() < deadline, f"{name}: {LIMIT_SECONDS} s are over\n{self.all_logs()}"
            time.sleep(0.1)

    def ended(self, name: str) -> int:
        """Wait for the end of a process that is meant to end; return its exit status."""
        process = self._processes[name]
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(LIMIT_SECONDS)
        assert process.poll() is not None, f"{name}: {LIMIT_SECONDS} s are over\n{self.all_logs()}"
        return self._processes.pop(name).returncode

    def signalled(self, name: str, number: signal.Signals) -> int:
        """Send a process a signal that ends it; return its exit status."""
        self._processes[name].send_signal(number)
        return self.ended(name)

    def stop(self, name: str) -> None:
        """Ask a process to stop, as systemd would."""
        process = self._processes.pop(name)
        process.terminate()
        process.wait(60)

    def kill(self, name: str) -> None:
        """Kill a process with all its descendants at once."""
        process = self._processes.pop(name)
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(family, timeout=30)
        process.wait(30)

    @contextlib.contextmanager
    def paused(self, name: str) -> Iterator[None]:
        """Freeze a process with all its descendants: connected, and silent."""
        root = psutil.Process(self._processes[name].pid)
        family = [root, *root.children(recursive=True)]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.suspend()
        try:
            yield
        finally:
            for member in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.resume()

    def left(self) -> list[psutil.Process]:
        """Processes of this deployment, however far they have got from their parents."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get(MARK) == self._mark:
                    found.append(process)
        return found

    def close(self) -> None:
        """Stop everything; kill what does not."""
        for name in list(self._processes):
            self._processes[name].terminate()
        for process in self._processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
        left = self.left()
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=30)

    def _listens(self) -> bool:
        return "ready: silos connect to " in self.log("link")

    def _environment(self) -> dict[str, str]:
        paths = {"PYTHONPATH": str(ROOT), "FLWR_HOME": str(self.folder / "flwr"), "FLWR_TELEMETRY_ENABLED": "0"}
        return {**os.environ, **paths, MARK: self._mark}


@contextlib.contextmanager
def deployed(
    folder: Path,
    silos: Mapping[str, Sequence[int]],
    stock: Sequence[str] = (),
    aggregators: Sequence[str] = (),
    **policy: Any,
) -> Iterator[Deployment]:
    """A link with silos that hold images of some digits; nothing of it runs on afterwards.

    Args:
        folder: everything is written below it.
        silos: name -> digits.
        stock: those for whose every message Flower starts a process, which takes ten seconds; the others are warm.
        aggregators: names of nodes that hold no images.
        policy: lines of the silos' policies, in snake case.
    """
    write_silos(folder / "images", silos)
    deployment = Deployment(folder)
    try:
        deployment.start_link()
        deployment.register(*silos, **policy)
        deployment.register_aggregators(*aggregators)
        deployment.exchange_keys(*silos, aggregators=aggregators)
        for name in silos:
            deployment.start_silo_of(name, *(["stock"] if name in stock else []))
        for name in aggregators:
            deployment.start_aggregator(name)
        yield deployment
    finally:
        deployment.close()
        assert deployment.left() == []


def same_run_in_process(run: RunFolder, deployment: Deployment, silos: Sequence[str]) -> RunFolder:
    """What a run would have made in one go and in this process: the same images come of it."""
    flat = json.loads(run.config.read_text())["config"]
    paths = {"output-dir": str(deployment.folder / "in-process"), "state-dir": str(deployment.folder / "state")}
    images = {name: deployment.folder / "images" / name for name in silos}
    return run_real({**flat, **paths, "resume": ""}, images)


def classes_of(run: RunFolder) -> dict[str, int]:
    """Images of every class."""
    folders = [path for path in run.synthetic.iterdir() if path.is_dir()]
    return {folder.name: len(list(folder.glob("*.png"))) for folder in sorted(folders)}
