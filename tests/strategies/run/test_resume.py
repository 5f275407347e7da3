"""Runs that are interrupted and continued, against the same runs in one go."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from interrupted_runs import (
    NINE,
    RUNS,
    THREE,
    Done,
    KilledError,
    assert_equal_runs,
    assert_finished_run_goes_on,
    assert_killed_and_resumed_equals_whole,
    assert_killed_late_repeats_no_round,
    die,
    files_of,
    in_round,
    killed_after_the_rounds,
    killed_when_saving,
    lose_silo_1,
    resumed,
    run,
    settings,
    whole_run,
)

from fedsynth.config import Scalar
from fedsynth.errors import RunError
from fedsynth.output import RunFolder
from strategies import STRATEGIES
from strategies.run.checkpoint import Checkpoint


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def fedavg(base: Path) -> Done:
    return whole_run(settings(base, "fedavg", run_name="chain"))


def test_all_strategies_are_interrupted() -> None:
    # A private run has other noise every time: what it does when it is resumed is in test_dp_sum.py.
    assert {name.split(", ")[0] for name in RUNS} == set(STRATEGIES) - {"dp-sum"}


@pytest.mark.parametrize("name", NINE)
def test_run_killed_in_round_3_and_resumed_equals_the_run_in_one_go(name: str, base: Path) -> None:
    assert_killed_and_resumed_equals_whole(name, base)


def test_silo_that_was_missing_before_the_interruption_is_back_after_it(tmp_path: Path) -> None:
    given = settings(tmp_path, "dfd", **THREE, min_replies=1)
    whole = whole_run(given, in_round(2, lose_silo_1))
    missing, killed = in_round(2, lose_silo_1), in_round(3, die)
    with pytest.raises(KilledError):
        run(given, lambda replies: killed(missing(replies)))
    assert_equal_runs(run(resumed(given)), whole)
    assert "silo-1 left out" in whole[0].log.read_text()


@pytest.mark.parametrize("name", ["fedavg, ema", "centralised"])
def test_finished_run_goes_on_for_more_rounds(name: str, base: Path) -> None:
    assert_finished_run_goes_on(name, base)


def test_run_killed_again_and_again(base: Path, fedavg: Done) -> None:
    given = settings(base, "fedavg", run_name="chain")
    with killed_when_saving(1):
        run(given)
    assert [row["round"] for row in RunFolder(Path(str(resumed(given)["resume"]))).read_metrics()] == [1]
    with killed_when_saving(2):
        run(resumed(given))
    with pytest.raises(KilledError):
        run(resumed(given), in_round(4, die, first=2))
    with killed_when_saving(4):
        run(resumed(given))
    killed_after_the_rounds(resumed(given))
    assert_equal_runs(run(resumed(given)), fedavg)
    log = fedavg[0].path.with_name("chain") / "log.txt"
    assert log.read_text().count("run folder ") == 6


@pytest.mark.parametrize("name", ["pooled", "feddiffuse, udec"])
def test_run_killed_after_its_last_round_repeats_none(name: str, base: Path) -> None:
    assert_killed_late_repeats_no_round(name, base)


def test_finished_run_is_measured_again_and_keeps_its_dataset_until_then(base: Path) -> None:
    quick: dict[str, Scalar] = {
        "classifiers": "logistic-regression",
        "classifier_seeds": 1,
        "feature_extractor": "pixels",
        "membership_inference": False,
    }
    given = settings(base, "fedavg", run_name="measured again", **quick)
    folder, _ = run(given)
    before = files_of(folder, "synthetic")
    results = json.loads(folder.results.read_text())
    killed_after_the_rounds({**resumed(given), "evaluate": True})
    assert files_of(folder, "synthetic") == before
    assert json.loads(folder.results.read_text()) == results
    run({**resumed(given), "evaluate": True})
    after = files_of(folder, "synthetic")
    assert {key: after[key] for key in after if key.endswith("png")} == {
        key: before[key] for key in before if key.endswith("png")
    }
    measured = json.loads(folder.results.read_text()).keys() - results.keys()
    assert "accuracy-logistic-regression" in measured
    assert "epsilon-membership-auc" not in measured


def test_costs_add_up_over_the_interruption(base: Path, fedavg: Done) -> None:
    given = settings(base, "fedavg", run_name="costs")
    with pytest.raises(KilledError):
        run(given, in_round(3, die))
    folder = RunFolder(Path(str(given["output-dir"])) / "costs")
    saved = Checkpoint.load(folder.checkpoints)
    assert saved is not None
    run(resumed(given))
    results, rows = json.loads(folder.results.read_text()), folder.read_metrics()
    assert results["rounds"] == 4
    assert results["client-seconds"] == pytest.approx(sum(row["client-seconds"] for row in rows))
    assert results["wall-seconds"] > saved.costs["wall_seconds"] + sum(row["seconds"] for row in rows[2:])
    # Centralised training talks to the silos for the census alone.
    census, _ = run(settings(base, "centralised", run_name="census"))
    for key in ("bytes-down", "bytes-up"):
        more = np.array([row[key] for row in rows]) - [row[key] for row in fedavg[0].read_metrics()]
        assert more.tolist() == [0, 0, *[census.read_metrics()[0][key]] * 2]
        assert results[key] == rows[-1][key]


def test_training_of_own_models_is_charged_once(tmp_path: Path) -> None:
    given = settings(tmp_path, "dfd")
    with pytest.raises(KilledError):
        run(given, in_round(3, die))
    folder, _ = run(resumed(given))
    models = [json.loads(path.read_text()) for path in (tmp_path / "state").glob("silo-*/models/*/training.json")]
    rounds = sum(row["client-seconds"] for row in folder.read_metrics())
    charged = json.loads(folder.results.read_text())["client-seconds"] - rounds
    assert charged == pytest.approx(sum(model["seconds"] for model in models)) != 0


def test_what_the_rounds_wait_for_may_change(base: Path) -> None:
    given = settings(base, "fedavg", run_name="patient", **THREE, min_replies=3)
    with pytest.raises(RunError, match="2 usable answers, 3 needed: silo-1"):
        run(given, in_round(2, lose_silo_1))
    folder, _ = run({**resumed(given), "min-replies": 2}, in_round(2, lose_silo_1, first=2))
    assert [row["silos"] for row in folder.read_metrics()] == [3, 2, 3, 3]
