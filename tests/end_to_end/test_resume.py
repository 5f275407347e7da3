"""A real run, stopped by a signal, killed, and continued each time."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from deployed import LIMIT_SECONDS
from diffusers import UNet2DModel
from tiny_runs import images_of, run_tiny, tiny_settings

from fedsynth.cli.deployment.flower import superlinks
from fedsynth.cli.deployment.processes import is_alive
from fedsynth.diffusion import ClassConditionalDDPMPipeline
from fedsynth.output import RunFolder

ROUNDS = 12
SETTINGS: dict[str, str | int | bool] = {
    "strategy": "fedavg",
    "num_clients": 2,
    "partition": "iid",
    "samples_per_client": 60,
    "num_rounds": ROUNDS,
    "train_steps": 40 * ROUNDS,
    "block_out_channels": "8,8",
    "layers_per_block": 1,
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


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("resume") / ".flwr"
    yield folder
    kill_family(folder)


def start(home: Path, blocker: Path, *words: str, background: bool = False) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fedsynth.cli", "run", *words]
    return subprocess.Popen(
        ["sh", "-c", f"{shlex.join(command)} & wait"] if background else command,
        cwd=home.parent,
        env={**os.environ, "FLWR_HOME": str(home), "PYTHONPATH": str(blocker)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(home: Path, process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode == 0, said[-8000:]
    _, alive = psutil.wait_procs(family(home), timeout=30)
    assert alive == []
    return said


def wait_for_round(number: int, home: Path, run: RunFolder) -> int:
    """Wait for a round of a run, and return the process of its command."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while len(run.read_metrics()) < number:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    commands = [process.pid for process in family(home) if "fedsynth.cli" in process.cmdline()]
    assert len(commands) == 1
    return commands[0]


def end_command(number: signal.Signals, command: int, home: Path) -> None:
    """Send the command a signal, and wait until nothing runs that it had started."""
    family_of_it = family(home)
    started = {child.pid for process in family_of_it for child in [process, *process.children(recursive=True)]}
    assert len(started) > 8, "the command, flwr run, the SuperLink, the simulation, Ray and its workers"
    os.kill(command, number)
    deadline = time.monotonic() + LIMIT_SECONDS
    while any(map(is_alive, started)):
        assert time.monotonic() < deadline, [process for process in started if is_alive(process)]
        time.sleep(0.05)


@dataclass(frozen=True)
class Story:
    """A run that was stopped, gone on with, killed and gone on with, beside the same run in one go and one process."""

    reached: int
    stopped: dict[str, Any]
    last_line: str
    said: str
    resumed: RunFolder
    whole: RunFolder


@pytest.fixture(scope="module")
def story(home: Path, blocker: Path) -> Story:
    run = RunFolder(home.parent / "runs" / "broken")
    # Shells that nobody types into have what they start in the background ignore Ctrl-C.
    shell = start(home, blocker, *OPTIONS, "--run-name", "broken", background=True)
    end_command(signal.SIGINT, wait_for_round(2, home, run), home)
    last_line = shell.communicate()[0].strip().splitlines()[-1]
    stopped = json.loads(run.status.read_text())
    reached = len(run.read_metrics())
    process = start(home, blocker, "--resume", "runs/broken/")
    end_command(signal.SIGKILL, wait_for_round(reached + 1, home, run), home)
    process.communicate()
    reached = len(run.read_metrics())
    assert not run.results.exists()
    process = start(home, blocker, "--resume", "runs/broken/")
    # While Flower starts.
    whole = run_tiny(tiny_settings(home.parent, **SETTINGS), report=False)
    return Story(reached, stopped, last_line, finish(home, process), run, whole)


def test_stopped_run_says_by_what_and_how_to_go_on(story: Story) -> None:
    resume = f"fedsynth run --resume {story.resumed.path}"
    told = {key: story.stopped[key] for key in ("state", "signal", "resume")}
    noted = f"fedsynth run --resume {story.resumed.path.name}"
    assert told == {"state": "stopped", "signal": "SIGINT", "resume": noted}
    assert re.fullmatch(f"stopped by SIGINT: the run stands after round [0-9]+; go on with '{resume}'", story.last_line)


def test_run_stopped_and_killed_with_all_its_processes_is_resumed_bit_for_bit(story: Story) -> None:
    resumed, whole = story.resumed, story.whole
    assert [row["round"] for row in resumed.read_metrics()] == list(range(1, ROUNDS + 1))
    assert f"round {story.reached}/{ROUNDS}" not in resumed.log.read_text().rsplit("run folder ", 1)[1]
    assert images_of(resumed) == images_of(whole)
    assert len(images_of(resumed)) == 20
    assert [row["loss"] for row in resumed.read_metrics()] == [row["loss"] for row in whole.read_metrics()]
    assert json.loads(resumed.results.read_text())["rounds"] == ROUNDS


def test_fedavg_leaves_a_model_that_diffusers_opens(story: Story) -> None:
    model = story.resumed.models / "global"
    pipeline = ClassConditionalDDPMPipeline.from_pretrained(model)
    assert tuple(pipeline.config.classes) == tuple("0123456789")
    assert UNet2DModel.from_pretrained(model / "unet").config.num_class_embeds == 10
    losses = [row["loss"] for row in story.resumed.read_metrics()]
    assert losses[1] < losses[0]


def test_command_leaves_no_superlink(story: Story, home: Path) -> None:
    assert story.resumed.results.is_file()
    assert superlinks(home) == []


def test_nothing_else_is_printed_before_the_command_or_after_the_report(story: Story) -> None:
    first, *_, last = story.said.strip().splitlines()
    assert first.startswith("FLWR_HOME="), "such as the warning of an import"
    assert last == f"report     {story.resumed.report}"
