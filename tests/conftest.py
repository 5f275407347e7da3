"""For all tests: their environment, their order, how long they took, and which of them may be skipped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections import defaultdict
from pathlib import Path
from random import Random
from types import SimpleNamespace
from zlib import crc32

import pytest

# Threads gain nothing on networks this small, and wait for each other many times longer when a core is taken. Set
# before the first import of an OpenMP library; processes that tests start inherit it.
os.environ["OMP_NUM_THREADS"] = "1"

# Under nohup it would be ignored here and in all that tests start, and tests that send it would wait for ever.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Flower ends the SuperLink, and with it whatever runs, when its database waits 5 s for a disk: keep it in memory.
MEMORY = Path("/dev/shm")
if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 4 * 2**30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))

DURATIONS = Path(__file__).with_name("durations.json")
ALLOWED_SKIPS = (
    "no chromium",
    "no MNIST",
    "no CIFAR10",
    "no TAEF2",
    "no laboratories",
    "no other Python",
    "no GPU",
    "no efficientnet-lite0",
    "no nginx",
    "no transformers",
    "no trackio",
    "no anvil",
    "no solc",
    "no web3",
)
"""How the reason of a skip may begin where the environment says CI=true; any other fails the session."""


class Sessions:
    """What the tests of a session took, by file, and the skips that nobody allowed."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.unexpected: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid.partition("::")[0]] += report.duration
        self._see(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._see(report)

    def _see(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        # Of a skip, longrepr is file, line and "Skipped: <reason>"; an expected failure has another.
        if report.skipped and isinstance(report.longrepr, tuple):
            reason = report.longrepr[2].removeprefix("Skipped: ")
            if not reason.startswith(ALLOWED_SKIPS):
                self.unexpected.append(f"{report.nodeid}: {reason}")

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.unexpected and os.environ.get("CI") == "true":
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if session.config.getoption("--write-durations") and not hasattr(session.config, "workerinput"):
            rounded = {file: round(seconds, 1) for file, seconds in self.seconds.items()}
            merged = {**_durations(), **rounded}
            kept = {file: merged[file] for file in sorted(merged) if (DURATIONS.parents[1] / file).is_file()}
            DURATIONS.write_text(json.dumps(kept, indent=0) + "\n")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for line in self.unexpected:
            terminalreporter.line(f"unexpected skip, which fails where CI=true: {line}")


def _durations() -> dict[str, float]:
    return json.loads(DURATIONS.read_text()) if DURATIONS.is_file() else {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-durations", action="store_true", help=f"note the seconds of every file in {DURATIONS}")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Sessions())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where processes share the tests, begin with the files that take longest, so that all end together."""
    if hasattr(config, "workerinput"):
        seconds = _durations()
        items.sort(key=lambda item: -seconds.get(item.nodeid.partition("::")[0], 0.0))


@pytest.fixture(autouse=True)
def same_noise_every_time(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise that a silo keeps secret has no seed; in the process of a test it is the same whenever that is run."""
    seed = crc32(request.node.nodeid.encode())
    released = sys.modules.get("clients.released")
    if released is not None:
        import numpy as np  # Not earlier: an OpenMP library, and its threads are set above.

        generator = np.random.default_rng(seed)
        monkeypatch.setattr(released, "secret_generator", lambda: generator)
    private = sys.modules.get("fedsynth.privacy.dp_training")
    if private is not None:
        monkeypatch.setattr(private, "secrets", SimpleNamespace(randbits=Random(seed).getrandbits))
