"""A run under ``python -OO``, which drops docstrings and assertions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_run_does_not_depend_on_docstrings_or_assertions(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from tiny_runs import run_tiny, tiny_settings
assert False, "dropped"
for strategy in ("fedavg", "dfd"):
    settings = tiny_settings(Path(sys.argv[1]) / strategy, strategy=strategy, num_clients=2, num_samples=10)
    print(strategy, run_tiny(settings).results.is_file())
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    command = [sys.executable, "-OO", "-c", code, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if " True" in line] == ["fedavg True", "dfd True"]
