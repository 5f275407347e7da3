"""The check of a graphics card works, on runs in this process."""

from __future__ import annotations

from pathlib import Path

import pytest
from whole_runs import published

from experiments import gpu_check


def test_gpu_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = published(gpu_check, "gpu", monkeypatch, tmp_path)
    runs = {row["what"]: row for row in found["details"]["runs"]}
    assert list(runs) == ["dfd", "pooled", "fedavg"]
    assert not [row["note"] for row in found["details"]["alone"] + list(runs.values()) if "note" in row]
    assert {row["steps of a silo"] for row in runs.values()} == {10}
    trained = runs["dfd"]["seconds by phase"]["training"]
    assert runs["dfd"]["steps a second"] == pytest.approx(10 / trained)
