"""The table of where a run's time goes adds up, on runs in this process."""

from __future__ import annotations

from pathlib import Path

import pytest
from whole_runs import published

from experiments.benchmarks import phases


def test_phases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phases, "in_fresh_process", lambda function, *args: function(*args))
    found = published(phases, "phases", monkeypatch, tmp_path)["details"]
    *parts, whole, _, _ = found
    assert parts == ["start", "training", "rounds", "sampling", "evaluation", "report", "rest"]
    for side in (0, 1):
        assert sum(found[phase][side] for phase in parts) == pytest.approx(found[whole][side])
        assert all(found[name][side] > 0 for name in found if name != "rest")
