"""Measurements of whole runs, made on runs in this process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import run_tiny

from fedsynth.config import RunConfig, Scalar
from fedsynth.output import RunFolder


def _in_process(folder: Path, name: str, settings: Mapping[str, Scalar]) -> RunFolder:
    places = {"output-dir": str(folder / "runs"), "state-dir": str(folder / "models"), "run-name": name}
    return run_tiny({**RunConfig().to_run_config(), **settings, **places})


def published(module: Any, name: str, monkeypatch: pytest.MonkeyPatch, output: Path) -> dict[str, Any]:
    """Run a benchmark's quick form with runs in this process and return what it has written."""
    monkeypatch.setattr(module, "synthesise", _in_process)
    monkeypatch.setattr("sys.argv", [name, "--quick", "--output", str(output)])
    module.main()
    return dict(json.loads((output / f"{name}.json").read_text()))
