"""What happens to a finished dataset that cannot be measured."""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import pytest
from tiny_runs import images_of, run_tiny, tiny_settings

from fedsynth.errors import UserError
from fedsynth.evaluation import Evaluator


@pytest.mark.parametrize("error", [UserError("too small"), ZeroDivisionError("a bug")])
def test_a_failed_measurement_costs_neither_dataset_nor_results(
    error: Exception, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with mock.patch.object(Evaluator, "evaluate", side_effect=error):
        folder = run_tiny(tiny_settings(tmp_path, evaluate=True, feature_extractor="pixels"))
    results = json.loads(folder.results.read_text())
    assert results["notes"] == f"measurement given up: {error}"
    assert results["rounds"] == 4
    assert "frechet-distance" not in results
    assert len(images_of(folder)) == 30
    assert f"measurement given up: {error}" in folder.report.read_text()
    assert ("Traceback" in caplog.text) == (not isinstance(error, UserError))


def test_weights_that_are_missing_stop_a_run_before_any_silo_works(tmp_path: Path) -> None:
    missing = {"feature_extractor": "inception-v3-compat", "feature_extractor_weights_path": str(tmp_path / "no.pth")}
    with pytest.raises(UserError, match=r"feature-extractor = inception-v3-compat: its weights cannot be read from"):
        run_tiny(tiny_settings(tmp_path, evaluate=True, **missing))
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "state").exists()
