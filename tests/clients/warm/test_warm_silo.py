"""Supervision of real processes; SuperNode and executor themselves are under test in tests/deployment."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys

import pytest

from clients.warm import warm_silo
from clients.warm.warm_silo import stop, supervise
from fedsynth import flower_version

WAIT = "import time; print('up', flush=True); time.sleep(60)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"


def process(code: str) -> subprocess.Popen[bytes]:
    """An interpreter that runs ``code``; when it says so, it is up."""
    started = subprocess.Popen([sys.executable, "-S", "-c", code], stdout=subprocess.PIPE)
    assert started.stdout is not None
    if "print" in code:
        assert started.stdout.readline() == b"up\n"
    return started


@pytest.mark.parametrize(
    ("first", "code", "status", "said"),
    [
        ("executor", "raise SystemExit(3)", 3, "status 3"),
        ("SuperNode", "pass", 1, "status 0"),
        ("executor", "import os; os.kill(os.getpid(), 9)", 137, "status -9"),
    ],
)
def test_the_end_of_one_is_the_end_of_both(first: str, code: str, status: int, said: str) -> None:
    other = "SuperNode" if first == "executor" else "executor"
    both, log = {other: process(WAIT), first: process(code)}, io.StringIO()
    assert supervise(both, log) == status
    assert both[other].returncode == -signal.SIGTERM
    assert log.getvalue() == f"error: the silo's {first} has ended by itself ({said}); all of it is stopped\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_both_and_is_no_failure(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    both, log = {"executor": process(WAIT), "SuperNode": process(WAIT)}, io.StringIO()
    before = signal.getsignal(number)
    # It sleeps where it waits for a signal.
    monkeypatch.setattr("clients.warm.warm_silo.time.sleep", lambda seconds: os.kill(os.getpid(), number))
    assert supervise(both, log) == 0
    assert [ended.returncode for ended in both.values()] == [-signal.SIGTERM] * 2
    assert log.getvalue() == ""
    assert signal.getsignal(number) is before


def test_who_does_not_stop_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_silo, "GRACE_PERIOD", 0.2)
    both = {"executor": process(STUBBORN), "SuperNode": process(WAIT)}
    stop(both)
    assert [ended.returncode for ended in both.values()] == [-signal.SIGKILL, -signal.SIGTERM]


def test_the_executor_ends_before_the_supernode() -> None:
    # It says when it has ended: the SuperNode still has to deliver its last answer.
    slow = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(print(time.monotonic())));"
        "print('up', flush=True); time.sleep(60)"
    )
    both = {"executor": process(slow), "SuperNode": process(slow)}
    stop(both)
    ends = [float(ended.stdout.read()) for ended in both.values() if ended.stdout]
    assert ends[0] < ends[1]


@pytest.mark.parametrize(
    "option", ["--isolation=subprocess", "--port", "--superexec-auth-secret-file", "--ssl-keyfile"]
)
def test_options_of_the_warm_path_itself_are_refused(option: str) -> None:
    log = io.StringIO()
    assert warm_silo.main(["--", "--insecure", option, "x"], log) == 2
    name = option.partition("=")[0]
    assert log.getvalue() == f"error: {name}: the warm path sets this option of flower-supernode itself\n"


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands that would have been started, on another version of Flower; each ends at once."""
    monkeypatch.setattr(flower_version, "version", lambda name: "1.43.0")
    started: list[list[str]] = []

    def start(command: list[str]) -> subprocess.Popen[bytes]:
        started.append(command)
        return process("raise SystemExit(4)")

    monkeypatch.setattr(warm_silo, "_started", start)
    return started


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "error: the warm path uses internals of Flower "),
        (
            ["--or-stock", "--allow-fab", "a" * 64],
            "--or-stock cannot help: Flower's own path does not know --allow-fab",
        ),
    ],
)
def test_another_version_of_flower_is_refused(options: list[str], said: str, commands: list[list[str]]) -> None:
    log = io.StringIO()
    assert warm_silo.main([*options, "--", "--insecure"], log) == 2
    assert said in log.getvalue()
    assert commands == []


def test_the_stock_path_is_taken_on_request_and_says_so(commands: list[list[str]]) -> None:
    log = io.StringIO()
    assert warm_silo.main(["--or-stock", "--", "--insecure", "--superlink", "host:1"], log) == 4
    assert "this is Flower 1.43.0" in log.getvalue()
    assert "Going on without, as --or-stock says" in log.getvalue()
    [[script, *arguments]] = commands
    assert script.endswith("/flower-supernode")
    assert arguments == ["--insecure", "--superlink", "host:1"]


def test_the_pair_knows_one_secret_and_one_port(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    secrets: list[tuple[bytes, int]] = []

    def start(command: list[str]) -> subprocess.Popen[bytes]:
        started.append(command)
        file = command[command.index("--superexec-auth-secret-file") + 1]
        with open(file, "rb") as secret:
            secrets.append((secret.read(), os.stat(file).st_mode & 0o777))
        return process("raise SystemExit(5)" if len(started) == 2 else WAIT)

    monkeypatch.setattr(warm_silo, "_started", start)
    assert warm_silo.main(["--allow-fab", "b" * 64, "--", "--insecure", "--node-config", "a=1 b=2"], io.StringIO()) == 5
    executor, supernode = started
    port = supernode[supernode.index("--port") + 1]
    assert executor[executor.index("--supernode-address") + 1] == f"127.0.0.1:{port}"
    assert executor[executor.index("--allow-fab") + 1] == "b" * 64
    assert executor[executor.index("--parent-pid") + 1] == str(os.getpid())
    assert supernode[-3:] == ["--insecure", "--node-config", "a=1 b=2"]
    assert secrets[0] == secrets[1]
    assert len(secrets[0][0]) == 32
    assert secrets[0][1] == 0o600
    assert not os.path.exists(executor[executor.index("--superexec-auth-secret-file") + 1])
