"""A real run, killed with everything it started, and continued."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from deployed import LIMIT_SECONDS
from diffusers import UNet2DModel
from tiny_runs import images_of, run_tiny, tiny_settings

from fedsynth.cli.deployment.flower import superlinks
from fedsynth.diffusion import ClassConditionalDDPMPipeline
from fedsynth.output import RunFolder

SETTINGS: dict[str, str | int | bool] = {
    "strategy": "fedavg",
    "num_clients": 2,
    "partition": "iid",
    "samples_per_client": 60,
    "num_rounds": 6,
    "train_steps": 240,
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


def start(home: Path, blocker: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "fedsynth.cli", "run", *words],
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


def kill_after_round(number: int, process: subprocess.Popen[str], home: Path, run: RunFolder) -> None:
    deadline = time.monotonic() + LIMIT_SECONDS
    while len(run.read_metrics()) < number:
        assert process.poll() is None, process.communicate()[0][-8000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert kill_family(home) > 3, "the command, the SuperLink, Ray and its workers"
    process.communicate()


@dataclass(frozen=True)
class Story:
    """A run that was killed and continued, beside the same run in one go and one process."""

    reached: int
    said: str
    resumed: RunFolder
    whole: RunFolder


@pytest.fixture(scope="module")
def story(home: Path, blocker: Path) -> Story:
    run = RunFolder(home.parent / "runs" / "broken")
    kill_after_round(2, start(home, blocker, *OPTIONS, "--run-name", "broken"), home, run)
    reached = len(run.read_metrics())
    assert 2 <= reached < 6
    assert not run.results.exists()
    process = start(home, blocker, "--resume", "runs/broken/")
    # While Flower starts.
    whole = run_tiny(tiny_settings(home.parent, **SETTINGS), report=False)
    return Story(reached, finish(home, process), run, whole)


def test_run_killed_with_all_its_processes_is_resumed_bit_for_bit(story: Story) -> None:
    resumed, whole = story.resumed, story.whole
    assert [row["round"] for row in resumed.read_metrics()] == [1, 2, 3, 4, 5, 6]
    assert f"round {story.reached}/6" not in resumed.log.read_text().rsplit("run folder ", 1)[1]
    assert images_of(resumed) == images_of(whole)
    assert len(images_of(resumed)) == 20
    assert [row["loss"] for row in resumed.read_metrics()] == [row["loss"] for row in whole.read_metrics()]
    assert json.loads(resumed.results.read_text())["rounds"] == 6


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
