from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def bin_folder(tmp_path: Path) -> Path:
    """A PATH with make's own needs and no Python."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "make", "echo"):
        (folder / name).symlink_to(Path("/usr/bin") / name)
    return folder


def stub(path: Path, fits: bool) -> None:
    """A Python that is fit or not, makes no environment, and installs nothing."""
    path.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exit {0 if fits else 1}\necho "{path.name} $*"\n')
    path.chmod(0o755)


def make(bin_folder: Path, *words: str) -> tuple[int, str]:
    venv = bin_folder.parent / "venv"
    (venv / "bin").mkdir(parents=True)
    stub(venv / "bin" / "python", fits=True)
    done = subprocess.run(
        ["make", "-C", str(ROOT), f"VENV={venv}", *words, f"{venv}/bin/uv"],
        env={**os.environ, "PATH": str(bin_folder), "MAKEFLAGS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("there", "words", "taken"),
    [
        ({"python3.11": True, "python3.13": True}, [], "python3.11"),
        ({"python3.11": False, "python3.12": True, "python3": True}, [], "python3.12"),
        ({"python3": True}, [], "python3"),
        ({"python3.11": True, "mine": True}, ["PYTHON=mine"], "mine"),
    ],
)
def test_the_first_python_that_fits_is_taken(
    there: dict[str, bool], words: list[str], taken: str, bin_folder: Path
) -> None:
    for name, fits in there.items():
        stub(bin_folder / name, fits)
    status, said = make(bin_folder, *words)
    assert status == 0, said
    assert f"{taken} -m venv {bin_folder.parent / 'venv'}" in said


@pytest.mark.parametrize("words", [[], ["PYTHON=mine"]])
def test_where_none_fits_it_says_what_to_do(words: list[str], bin_folder: Path) -> None:
    stub(bin_folder / "mine", fits=False)
    status, said = make(bin_folder, *words)
    assert status != 0
    assert "No Python 3.11 to 3.14 with venv among" in said
    assert "apt install python3-venv" in said
    assert ("among: mine." in said) == bool(words)
