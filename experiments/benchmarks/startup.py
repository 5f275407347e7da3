"""What a command costs before it does anything: ``python -m experiments.benchmarks.startup [--output FOLDER]``.

CPU seconds of whole processes, the least of a few repetitions, and the same as a multiple of ``python -c "import
numpy"``, which other programs on the machine change less. Commands that compute nothing are to take less than a second;
the two apps are what every process of Flower's imports before it handles a message.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from experiments.benchmarks.common import machine_facts, publish
from fedsynth.config import RunConfig
from fedsynth.output import RunFolder, SyntheticDataset, write_dataset

_REPETITIONS = 5
_NUMPY = ("-c", "import numpy")
_COMMANDS = (
    *("--help", "--version", "stauts", "run --help", "run --num-client 3", "status", "status runs/nothing"),
    *("compare runs/first runs/second", "table runs", "sweep --help", "doctor --help", "silo start --help"),
)
_APPS = ("clients.app", "strategies.app")


def main() -> None:
    """Measure all and print it as one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=_REPETITIONS, help=f"default: {_REPETITIONS}")
    parser.add_argument("--output", type=Path, help="folder for startup.md and startup.json (default: only print)")
    options = parser.parse_args()
    programs: dict[str, tuple[str, ...]] = {"python -c 'import numpy'": _NUMPY}
    programs |= {f"fedsynth {command}": ("-m", "fedsynth.cli", *command.split()) for command in _COMMANDS}
    programs |= {f"import of {app}": ("-c", f"import {app}") for app in _APPS}
    facts = machine_facts()
    with tempfile.TemporaryDirectory(prefix="fedsynth-startup-") as folder:
        _make_runs(Path(folder))
        seconds = {
            name: min(_cpu_seconds(words, Path(folder)) for _ in range(options.repetitions))
            for name, words in programs.items()
        }
    unit = seconds["python -c 'import numpy'"]
    rows = [
        {"process": name, "CPU s": f"{took:.2f}", "of import numpy": f"{took / unit:.1f}"}
        for name, took in seconds.items()
    ]
    publish("startup", facts, rows, seconds, options.output)


def _cpu_seconds(words: tuple[str, ...], folder: Path) -> float:
    """Return user and system time of a process and its children, in seconds."""
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    before = os.times()
    subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, check=False)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def _make_runs(root: Path) -> None:
    """Make two finished runs and a sweep without any, as commands that read runs find them."""
    for name, strategy in (("first", "dfd"), ("second", "fedavg")):
        folder = RunFolder.create(root / "runs", name)
        config = RunConfig.from_run_config({"strategy": strategy, "run-name": name})
        folder.write_config({"config": config.to_run_config(), "resolved": []})
        folder.append_metrics({"round": 1, "loss": 0.5, "seconds": 1.0})
        images = np.zeros((20, 8, 8, 1), np.uint8)
        write_dataset(SyntheticDataset(images, np.arange(20) % 10, tuple("0123456789"), {}), folder.synthetic)
        folder.write_results({"strategy": strategy, "frechet-distance": 3.0, "n": 20, "feature-space": "pixels"})
        now = datetime.now(UTC).isoformat()
        folder.write_status({"state": "finished", "pid": 1, "round": 1, "rounds": 1, "updated": now})
    (root / "runs" / "sweep.json").write_text('{"runs": []}', encoding="utf-8")


if __name__ == "__main__":
    main()
