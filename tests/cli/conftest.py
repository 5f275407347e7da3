from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fake_flower import FakeFlower

from fedsynth.cli import main

Refused = Callable[..., str]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory of a user who has set nothing."""
    for variable in ("FLWR_HOME", "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT", "FLWR_LOCAL_CONTROL_API_PORT"):
        monkeypatch.delenv(variable, raising=False)
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run a command that must fail with exit status 2 and one line; return it.

    Nothing else is printed, and no file changes, unless ``started`` says that the work has begun.
    """

    def run(*words: str, started: bool = False) -> str:
        capsys.readouterr()
        before = contents(tmp_path)
        assert main(words) == 2
        printed = capsys.readouterr()
        (line,) = printed.err.strip().splitlines()
        assert line.startswith("error: ")
        assert started or (printed.out, contents(tmp_path)) == ("", before)
        return line

    return run


def contents(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def flower(project: Path, monkeypatch: pytest.MonkeyPatch) -> FakeFlower:
    """``flwr run`` as a stand-in, on a machine without CUDA."""
    fake = FakeFlower()
    monkeypatch.setattr("fedsynth.cli.run.subprocess.run", fake)
    monkeypatch.setattr("fedsynth.cli.run.start_superlink", lambda *given: True)
    monkeypatch.setattr("fedsynth.cli.run.stop_superlinks", lambda home: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return fake
