from __future__ import annotations

import numpy as np
import pytest
import torch

from fedsynth.config import RunConfig
from fedsynth.evaluation import CLASSIFIERS, Evaluation, results_rows
from fedsynth.evaluation.suite import Fidelity
from fedsynth.spec import ImageSpec
from strategies import STRATEGIES
from strategies.base import Outcome, Task
from strategies.census import Census, Member
from strategies.publish import Costs
from strategies.summary import report_content

FIDELITY = Fidelity(
    n=30,
    k=5,
    feature_space="domain-classifier",
    frechet_distance=18.4,
    reference_frechet_distance=4.0,
    precision=0.8,
    recall=0.4,
    density=0.9,
    coverage=0.7,
)
SCORES = {f"accuracy-{name}": 0.5 + k / 10 for k, name in enumerate(CLASSIFIERS)}
EVALUATION = Evaluation(FIDELITY, 25, SCORES, {key: value + 0.2 for key, value in SCORES.items()}, ("biased",))


def outcome() -> Outcome:
    return Outcome(np.zeros((4, 8, 8, 1), np.uint8), np.arange(4) % 2)


def task(strategy: str) -> Task:
    census = Census([Member(1, "north", 7, [7, 0], [(9, 0.25)], 3.14), Member(2, "south", 5, [2, 3])])
    config = RunConfig.from_run_config({"strategy": strategy})
    return Task(config, ImageSpec(1, 8, ("a", "b")), census, torch.arange(4) % 2)


def test_every_measure_stands_beside_its_n_and_its_ceiling() -> None:
    rows = results_rows([EVALUATION])
    assert rows["frechet-distance"] == {
        "synthetic": 18.4,
        "better": "lower",
        "N": 30,
        "in": "domain-classifier",
        "real": 4.0,
    }
    assert [rows[measure]["synthetic"] for measure in ("precision", "recall", "density", "coverage")] == [
        0.8,
        0.4,
        0.9,
        0.7,
    ]
    for k, name in enumerate(CLASSIFIERS):
        row = rows[f"accuracy-{name}"]
        assert (row["synthetic"], row["real"], row["N"]) == (0.5 + k / 10, pytest.approx(0.7 + k / 10), 25)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_report_says_how_every_method_works(strategy: str) -> None:
    content = report_content(task(strategy), outcome(), Costs(rounds=2).row(), [EVALUATION], [])
    assert content.title == f"{strategy} on digits, 2 silos"
    assert "4 labelled synthetic images from 2 silos" in content.explanation
    assert content.headline["rounds"] == 2
    assert content.headline["accuracy on real test images (CNN trained on synthetic)"] == SCORES["accuracy-cnn"]
    assert content.silos == [
        {"silo": "north", "training images": 7, "classes": 1, "final loss": 0.25, "training seconds": 3.1},
        {"silo": "south", "training images": 5, "classes": 2},
    ]
    assert content.limits == ("biased",)


def test_report_without_measurements_or_real_images_says_nothing_about_them() -> None:
    content = report_content(task("dfd"), outcome(), Costs().row(), [], [{"round": 1, "effective-experts": 2.0}])
    assert content.results == {}
    assert content.real_images is None
    assert set(content.headline) == {"synthetic images", "rounds"}
    assert content.round_keys == ["effective-experts"]
