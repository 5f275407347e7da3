"""Commands that are told to stop, by every signal: in processes of their own, without Flower."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from fedsynth.cli.stopping import StoppedError, handled_by, stopped_by_signals

ALL = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
COMMAND = """
import os, sys, time
from argparse import Namespace
from fedsynth.cli import main, stop
def work(options, rest):
    try:
        print("working", flush=True)
        time.sleep(60)
    finally:
        print("cleaned up", flush=True)
        time.sleep(float(os.environ["CLEANING_SECONDS"]))
stop.execute = work
sys.exit(main(["stop"]))
"""


def start(cleaning: float = 0.0, ignored: tuple[signal.Signals, ...] = ()) -> subprocess.Popen[str]:
    def ignore() -> None:
        for number in ALL:
            signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)

    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND],
        env={**os.environ, "CLEANING_SECONDS": str(cleaning)},
        preexec_fn=ignore,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert next_line(process) == "working"
    return process


def next_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("number", ALL)
def test_a_command_cleans_up_and_says_what_stopped_it_also_if_a_shell_started_it_in_the_background(
    number: signal.Signals,
) -> None:
    with start(ignored=(signal.SIGINT,)) as process:
        process.send_signal(number)
        printed, said = process.communicate(timeout=60)
    assert printed == "cleaned up\n"
    assert said == f"stopped by {number.name}\n"
    assert process.returncode == 128 + number


def test_a_second_signal_ends_it_at_once() -> None:
    with start(cleaning=60.0) as process:
        process.send_signal(signal.SIGTERM)
        assert next_line(process) == "cleaned up"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 128 + signal.SIGINT


def test_under_nohup_it_outlives_its_terminal() -> None:
    with start(ignored=(signal.SIGHUP,)) as process:
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=60)[1] == "stopped by SIGTERM\n"


def test_what_runs_in_the_foreground_under_nohup_outlives_its_terminal() -> None:
    earlier = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with handled_by(lambda number, frame: None):
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, earlier)


def test_handlers_of_before_come_back() -> None:
    before = [signal.getsignal(number) for number in ALL]
    with pytest.raises(StoppedError, match="stopped by SIGHUP") as stopped, stopped_by_signals():
        signal.raise_signal(signal.SIGHUP)
    assert stopped.value.number == signal.SIGHUP
    assert [signal.getsignal(number) for number in ALL] == before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_whose_exception_python_drops_counts_at_the_end() -> None:
    class Dropping:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(StoppedError, match="SIGTERM"), stopped_by_signals():
        Dropping()


def test_a_forked_child_ends_as_it_would_have_without_us() -> None:
    reading, writing = os.pipe()
    with stopped_by_signals():
        child = os.fork()
        if child == 0:
            os.write(writing, b"up")  # Python drops signals that arrive while it forks.
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                time.sleep(0.01)
            os._exit(0)
        os.read(reading, 2)
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGTERM
    os.close(reading)
    os.close(writing)
