from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fake_flower import FakeFlower


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
def flower(project: Path, monkeypatch: pytest.MonkeyPatch) -> FakeFlower:
    """``flwr run`` as a stand-in, on a machine without CUDA."""
    fake = FakeFlower()
    monkeypatch.setattr("fedsynth.cli.run.subprocess.run", fake)
    monkeypatch.setattr("fedsynth.cli.run.stop_superlinks", lambda home: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return fake
