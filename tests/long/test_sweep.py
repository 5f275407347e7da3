"""A real sweep through ``fedsynth run``: killed in the middle of a run, which is found again, and its table."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
from deployed import LIMIT_SECONDS

from fedsynth.cli.sweeps.run_process import MARK, end_processes
from fedsynth.output import RunFolder

"""Seconds to wait for one thing: much, for a machine that has other work."""
ROOT = Path(__file__).parents[2]
SWEEP = """
num-clients = 2
partition = "iid"
samples-per-client = 60
block-out-channels = "8,8"
num-rounds = 40
train-steps = 400
num-samples = 20
sampling-steps = 3
evaluate = false

[[method]]
name = "my own"
strategy = "clipped_mean:ClippedMean"
dataset = "stripes:load"
image-size = 8
sampler = "half_noise:scheduler"
"""


def command(folder: Path, *words: str) -> subprocess.Popen[str]:
    # The directory of the checkout comes first, whatever else is installed.
    path = os.pathsep.join([str(ROOT), str(folder / "mine")])
    environment = {**os.environ, "FLWR_HOME": str(folder / ".flwr"), "PYTHONPATH": path, "FLWR_TELEMETRY_ENABLED": "0"}
    return subprocess.Popen(
        [sys.executable, "-m", "fedsynth.cli", *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def marked(folder: Path) -> int:
    count = 0
    for process in psutil.process_iter():
        try:
            count += process.environ().get(MARK, "").startswith(str(folder))
        except psutil.Error:
            continue
    return count


def test_a_killed_sweep_is_finished_and_laid_out(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    guide = (ROOT / "docs" / "extending.md").read_text()
    for name, code in re.findall(r"```python\n# (\w+)\.py\n(.*?)```", guide, re.DOTALL):
        (tmp_path / "mine" / f"{name}.py").write_text(code)
    (tmp_path / "tiny.toml").write_text(SWEEP)
    folder = tmp_path / "runs" / "tiny"
    own = RunFolder(folder / "my-own-0")
    sweep = command(tmp_path, "sweep", "tiny.toml")
    try:
        deadline = time.monotonic() + LIMIT_SECONDS
        while not own.read_metrics():
            assert sweep.poll() is None, sweep.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        sweep.kill()
        sweep.communicate()
        assert marked(tmp_path) > 3, "the run, the SuperLink, Ray and its workers go on"
        again = command(tmp_path, "sweep", "tiny.toml")
        said, _ = again.communicate(timeout=LIMIT_SECONDS)
        assert again.returncode == 0, said
        assert marked(tmp_path) == 0
    finally:
        sweep.kill()
        end_processes(own.path)
    assert "[1/1] my own, seed 0: resumed" in said
    assert "1 of 1 runs finished" in said
    assert [row["round"] for row in own.read_metrics()] == list(range(1, 41))
    assert {path.parent.name for path in own.synthetic.glob("*/*.png")} == {"upright", "level", "slanted"}
    manifest = json.loads((folder / "sweep.json").read_text())["runs"]
    assert [run["status"] for run in manifest] == ["finished"]
    table = command(tmp_path, "table", "tiny.toml")
    said, _ = table.communicate(timeout=LIMIT_SECONDS)
    assert re.search(r"\| my own +\| 1 +\| 40 +\| ", said)
