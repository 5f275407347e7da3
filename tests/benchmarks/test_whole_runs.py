"""The measurements of whole runs work, on runs in this process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import run_tiny

from experiments import gpu_check
from experiments.benchmarks import phases
from fedsynth.config import RunConfig, Scalar
from fedsynth.output import RunFolder


def _in_process(folder: Path, name: str, settings: Mapping[str, Scalar]) -> RunFolder:
    places = {"output-dir": str(folder / "runs"), "state-dir": str(folder / "models"), "run-name": name}
    return run_tiny({**RunConfig().to_run_config(), **settings, **places})


def _published(module: Any, name: str, monkeypatch: pytest.MonkeyPatch, output: Path) -> dict[str, Any]:
    monkeypatch.setattr(module, "synthesise", _in_process)
    monkeypatch.setattr("sys.argv", [name, "--quick", "--output", str(output)])
    module.main()
    return dict(json.loads((output / f"{name}.json").read_text()))


def test_gpu_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = _published(gpu_check, "gpu", monkeypatch, tmp_path)
    runs = {row["what"]: row for row in found["details"]["runs"]}
    assert list(runs) == ["dfd", "pooled", "fedavg"]
    assert not [row["note"] for row in found["details"]["alone"] + list(runs.values()) if "note" in row]
    assert {row["steps of a silo"] for row in runs.values()} == {10}
    trained = runs["dfd"]["seconds by phase"]["training"]
    assert runs["dfd"]["steps a second"] == pytest.approx(10 / trained)


def test_phases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phases, "in_fresh_process", lambda function, *args: function(*args))
    found = _published(phases, "phases", monkeypatch, tmp_path)["details"]
    *parts, whole, _, _ = found
    assert parts == ["start", "training", "rounds", "sampling", "evaluation", "report", "rest"]
    for side in (0, 1):
        assert sum(found[phase][side] for phase in parts) == pytest.approx(found[whole][side])
        assert all(found[name][side] > 0 for name in found if name != "rest")
