"""A small private run, and what every one must have written."""

from __future__ import annotations

import json
from pathlib import Path

from tiny_runs import run_tiny, tiny_settings

from fedsynth.config import Scalar
from fedsynth.output.dataset_card import NOT_PRIVATE

PRIVATE: dict[str, Scalar] = {
    "num_samples": 10,
    "num_clients": 2,
    "dp_epsilon": 1.0,
    "dp_steps": 2,
    "dp_multiplicity": 1,
    "dp_sampling_rate": 1.0,
}


def check_own_models(strategy: str, folder: Path) -> None:
    """Run a strategy whose silos train models of their own, and read what it and they wrote."""
    run = run_tiny(tiny_settings(folder, strategy=strategy, **PRIVATE), report=False)
    results = json.loads((run.path / "results.json").read_text())
    assert 0.99 < results["privacy-epsilon"] <= 1.0
    assert results["privacy-delta"] == 1e-5
    cards = [path.read_text() for path in run.synthetic.rglob("README.md")]
    assert cards
    for text in cards:
        assert "training is differentially private with ε = " in text
        assert NOT_PRIVATE not in text
    histories = [json.loads(path.read_text()) for path in (folder / "state").rglob("training.json")]
    assert [(history["steps"], history["losses"]) for history in histories] == [([2.0], [])] * 2
