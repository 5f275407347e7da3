"""Whole runs with dp-epsilon: models, rounds, what they write, and how they may continue."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from private_runs import PRIVATE, check_own_models
from tiny_runs import run_tiny, tiny_settings

from fedsynth.errors import UserError


def test_private_run_makes_a_dataset_and_states_its_guarantee(tmp_path: Path) -> None:
    check_own_models("dfd", tmp_path)


def test_private_rounds_cannot_be_spread_over_others(tmp_path: Path) -> None:
    folder = run_tiny(tiny_settings(tmp_path, strategy="fedavg", **PRIVATE, num_rounds=2), report=False)
    settings = folder.read_config().to_run_config()
    assert 0.99 < json.loads((folder.path / "results.json").read_text())["privacy-epsilon"] <= 1.0
    with pytest.raises(UserError, match="num-rounds = 1: the run to resume has 2"):
        run_tiny({**settings, "resume": str(folder.path), "num-rounds": 1}, report=False)
