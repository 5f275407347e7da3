"""The scripts and notebooks of examples/ with their own settings, as a user runs them: minutes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from class_folders import write_images

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def run(folder: Path, *words: object) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_scripts(tmp_path: Path) -> None:
    photos = write_images(tmp_path / "photos", {"dark": 60, "light": 60}, side=32)
    for name, *given in (("own_images", photos), ("own_strategy",), ("foreign_models", tmp_path / "three")):
        assert "report " in run(tmp_path, EXAMPLES / f"{name}.py", *given)


@pytest.mark.parametrize("name", ["first_dataset", "three_hospitals"])
def test_notebooks(name: str, tmp_path: Path) -> None:
    cells = json.loads((EXAMPLES / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    (tmp_path / "notebook.py").write_text(f"{code}\nassert len(run.dataset.images) == settings['num_samples']\n")
    run(tmp_path, "notebook.py")
