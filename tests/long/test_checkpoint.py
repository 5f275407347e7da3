"""Checkpoints whose writer is killed at random moments."""

from __future__ import annotations

import multiprocessing
import random
import time
from pathlib import Path

import torch

from fedsynth.output import RunFolder
from strategies.run.checkpoint import NAME, PREVIOUS, Checkpoint


def _save_for_ever(folder: Path, first: int) -> None:
    for number in range(first, 10**9):
        arrays = {"weights": torch.full((100_000,), float(number)), "step": torch.tensor(number)}
        Checkpoint(number, arrays, {}, {}, {}).save(folder)


def test_writer_killed_at_any_moment_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    random_moments, fork = random.Random(0), multiprocessing.get_context("fork")
    run, last = RunFolder(tmp_path), 0
    for _ in range(10):
        before = last
        writer = fork.Process(target=_save_for_ever, args=(run.checkpoints, last + 1))
        writer.start()
        time.sleep(random_moments.uniform(0.03, 0.1))
        writer.kill()
        writer.join()
        loaded = Checkpoint.load(run.checkpoints)
        if loaded is not None:
            last = loaded.round
            assert last >= before
            assert torch.equal(loaded.arrays["weights"], torch.full((100_000,), float(last)))
            assert int(loaded.arrays["step"]) == last
    assert last > 10
    torn = [path for path in run.checkpoints.iterdir() if path.name not in (NAME, PREVIOUS)]
    assert torn, "no writer was killed while it wrote: the test has tested nothing"
    run.remove_torn_files()
    assert sorted(path.name for path in run.checkpoints.iterdir()) == [NAME, PREVIOUS]
