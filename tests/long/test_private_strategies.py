"""Whole private runs of the strategies whose silos train models of their own; dfd is among the short tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from private_runs import check_own_models


@pytest.mark.parametrize("strategy", ["pooled", "local", "fedddpm"])
def test_private_run_makes_a_dataset_and_states_its_guarantee(strategy: str, tmp_path: Path) -> None:
    check_own_models(strategy, tmp_path)
