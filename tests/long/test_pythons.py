"""Every other Python of this machine that the project takes: installed as users do, a part of the tests, one run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHONS = ["3.11", "3.12", "3.13", "3.14"]
PARTS = ["tests/config", "tests/messages", "tests/mixture", "tests/cli/test_doctor.py", "tests/strategies/conversation"]
TINY = {
    "num-clients": 2,
    "partition": "iid",
    "samples-per-client": 60,
    "train-steps": 12,
    "block-out-channels": "8,8",
    "screening": "false",
    "num-samples": 20,
    "dfd-rounds": 3,
    "evaluate": "false",
    "run-name": "tiny",
}
LIMIT_SECONDS = 3600


def python_of(version: str) -> str:
    """A Python of that version with what makes environments, on the PATH or of pyenv; empty: none."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = [shutil.which(f"python{version}"), *sorted(pyenv.glob(f"versions/{version}.*/bin/python"))]
    for python in map(str, filter(None, found)):
        if subprocess.run([python, "-c", "import ensurepip"], capture_output=True, check=False).returncode == 0:
            return python
    return ""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder on a disk: an environment has six GB."""
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="fedsynth-python-") as folder:
        yield Path(folder)


@pytest.mark.parametrize("version", PYTHONS)
def test_installed_tested_and_run(version: str, folder: Path) -> None:
    if version == f"{sys.version_info[0]}.{sys.version_info[1]}":
        pytest.skip(f"no other Python: the tests themselves run on {version}")
    if not (python := python_of(version)):
        pytest.skip(f"no other Python {version} on this machine: not run there")
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for file in filter(None, files):
        (folder / "copy" / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, folder / "copy" / file)
    command(folder / "copy", "make", "install-dev", f"PYTHON={python}")
    scripts = folder / "copy" / ".venv" / "bin"
    assert version in command(folder, scripts / "python", "--version")
    command(folder / "copy", scripts / "pytest", "-n", "2", *PARTS)
    words = [word for key, value in TINY.items() for word in (f"--{key}", str(value))]
    command(folder, scripts / "fedsynth", "run", *words)
    assert len(list((folder / "runs" / "tiny" / "synthetic").glob("*/*.png"))) == 20


def test_a_wheel_runs_in_an_empty_folder_also_of_a_user_whose_home_cannot_be_written(folder: Path) -> None:
    others = [version for version in PYTHONS if version != f"{sys.version_info[0]}.{sys.version_info[1]}"]
    if not (python := next(filter(None, map(python_of, others)), "")):
        pytest.skip("no other Python on this machine: no wheel is installed there")
    uv, scripts = Path(sys.executable).with_name("uv"), folder / "venv" / "bin"
    command(folder, uv, "build", "--wheel", "--out-dir", folder / "dist", ROOT)
    (wheel,) = (folder / "dist").glob("*.whl")
    command(folder, uv, "venv", "--python", python, folder / "venv")
    constraints = ["--constraints", ROOT / "constraints.txt", "--compile-bytecode"]
    command(folder, uv, "pip", "install", *constraints, "--python", scripts / "python", wheel)
    words = [word for key, value in TINY.items() for word in (f"--{key}", str(value))]
    # A folder in which not even root may write.
    for place, home in (("empty", str(folder)), ("homeless", "/sys/kernel")):
        (folder / place).mkdir()
        command(folder / place, scripts / "fedsynth", "run", *words, home=home)
        assert {path.name for path in (folder / place).iterdir()} == {".flwr", ".fedsynth", "runs"}
        assert (folder / place / "runs" / "tiny" / "report.html").is_file()


def command(folder: Path, *words: str | Path, home: str = "") -> str:
    """Run a command that must succeed, without anything that belongs to this session's environment."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV", "MAKEFLAGS")}
    kept |= {"HOME": home} if home else {}
    done = subprocess.run(
        list(map(str, words)),
        cwd=folder,
        env=kept,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout
