"""A real run, killed with everything it started, and continued."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tiny_runs import images_of, run_tiny, tiny_settings

from fedsynth.output import RunFolder

SETTINGS: dict[str, str | int | bool] = {
    "strategy": "fedavg",
    "num_clients": 2,
    "partition": "iid",
    "samples_per_client": 60,
    "num_rounds": 6,
    "train_steps": 300,
    "block_out_channels": "8,8",
    "num_samples": 20,
    "sampler": "ddpm",
    "sampling_steps": 3,
    "evaluate": False,
}
OPTIONS = [f"--{key.replace('_', '-')}={value}".replace("False", "false") for key, value in SETTINGS.items()]


def family(home: Path) -> list[psutil.Process]:
    """All processes that were started under this ``FLWR_HOME``, however far they have got from their parents."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("FLWR_HOME") == str(home):
                found.append(process)
    return found


def kill_family(home: Path) -> int:
    """SIGKILL everything at once; return how many processes there were."""
    killed = 0
    while members := family(home):
        killed += len(members)
        for process in members:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(members, timeout=10)
    return killed


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / ".flwr"
    yield folder
    kill_family(folder)


def start(home: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "fedsynth.cli", "run", *words],
        cwd=home.parent,
        env={**os.environ, "FLWR_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(home: Path, *words: str) -> None:
    process = start(home, *words)
    said, _ = process.communicate(timeout=280)
    assert process.returncode == 0, said[-8000:]
    _, alive = psutil.wait_procs(family(home), timeout=30)
    assert alive == []


def kill_after_round(number: int, process: subprocess.Popen[str], home: Path, run: RunFolder) -> None:
    deadline = time.monotonic() + 200
    while len(run.read_metrics()) < number:
        assert process.poll() is None, process.communicate()[0][-8000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert kill_family(home) > 3, "the command, the SuperLink, Ray and its workers"
    process.communicate()


def test_run_killed_with_all_its_processes_is_resumed_bit_for_bit(home: Path) -> None:
    broken = RunFolder(home.parent / "runs" / "broken")
    process = start(home, *OPTIONS, "--run-name", "broken")
    kill_after_round(2, process, home, broken)
    whole = run_tiny(tiny_settings(home.parent, **SETTINGS), report=False)
    reached = len(broken.read_metrics())
    assert 2 <= reached < 6
    assert not broken.results.exists()
    finish(home, "--resume", "runs/broken/")
    assert [row["round"] for row in broken.read_metrics()] == [1, 2, 3, 4, 5, 6]
    assert f"round {reached}/6" not in broken.log.read_text().rsplit("run folder ", 1)[1]
    assert images_of(broken) == images_of(whole)
    assert len(images_of(broken)) == 20
    assert [row["loss"] for row in broken.read_metrics()] == [row["loss"] for row in whole.read_metrics()]
    assert json.loads(broken.results.read_text())["rounds"] == 6
