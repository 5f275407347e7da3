from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedsynth import __version__
from fedsynth.config import RunConfig, Scalar
from fedsynth.evaluation import DEFAULT_CLASSIFIERS, Evaluation, mean_columns, measure_rows
from fedsynth.evaluation.membership import Membership
from fedsynth.evaluation.utility import Scores
from fedsynth.privacy.statement import privacy_statement
from fedsynth.spec import ImageSpec
from fedsynth.units import rounded_up
from strategies.base import Outcome, Task
from strategies.conversation.census import Census, Member
from strategies.results.measure import Measurements
from strategies.results.membership_inference import ModelAttack
from strategies.results.summary import report_content
from strategies.run.costs import Costs

FIDELITY = {"n": 30, "k": 5, "frechet-distance": 18.4, "kernel-distance": 0.3, "kernel-distance-std": 0.1}
FIDELITY |= {"precision": 0.8, "recall": 0.4, "density": 0.9, "coverage": 0.7}
REAL_FIDELITY = {**FIDELITY, "frechet-distance": 4.0}


def scores(accuracy: float, interval: float | None) -> Scores:
    return Scores(accuracy, 0.0, 0.0, 0.0, interval, (accuracy, accuracy), (accuracy, accuracy))


def utility(more: float) -> dict[str, Scores]:
    return {name: scores(0.5 + k / 10 + more, k / 100 or None) for k, name in enumerate(DEFAULT_CLASSIFIERS)}


EVALUATION = Evaluation(
    feature_space="domain-classifier",
    fidelity={"overall": FIDELITY, "per-class": {"a": FIDELITY}, "left-out": {"b": "too few"}},
    reference={"overall": REAL_FIDELITY, "per-class": {}, "left-out": {}},
    n_train=25,
    utility=utility(0.0),
    real_utility=utility(0.2),
    joint_utility=utility(0.25),
    classes=("a", "b"),
    notes=("biased",),
    membership=Membership(9, 9, 0.6, 0.02),
)
ATTACK = ModelAttack((1, 2), {"north": Membership(7, 7, 0.5, 0.0), "south": Membership(5, 5, 0.8, 0.4)})


def outcome() -> Outcome:
    return Outcome(np.zeros((4, 8, 8, 1), np.uint8), np.arange(4) % 2)


def task(strategy: str, **settings: Scalar) -> Task:
    census = Census([Member(1, "north", 7, [7, 0], [(9, 0.25)], 3.14), Member(2, "south", 5, [2, 3])])
    config = RunConfig.from_run_config({"strategy": strategy, **settings})
    return Task(config, ImageSpec(1, 8, ("a", "b")), census, torch.arange(4) % 2)


def test_every_measure_stands_beside_its_n_and_its_ceiling() -> None:
    rows = measure_rows([EVALUATION])
    assert [*rows][:2] == ["kernel-distance", "frechet-distance"]  # the former depends less on so small an n
    beside = {"N": 30, "in": "domain-classifier"}
    assert rows["frechet-distance"] == {"synthetic": 18.4, "real": 4.0, "better": "lower", **beside}
    kernel = {"synthetic": 0.3, "±": 0.1, "real": 0.3, "better": "lower", **beside}
    assert rows["kernel-distance"] == kernel
    found = [rows[measure]["synthetic"] for measure in ("precision", "recall", "density", "coverage")]
    assert found == [0.8, 0.4, 0.9, 0.7]
    for k, name in enumerate(DEFAULT_CLASSIFIERS):
        row = rows[f"accuracy-{name}"]
        accuracies = [row["synthetic"], row["real"], row["real + synthetic"]]
        assert accuracies == pytest.approx([0.5 + k / 10, 0.7 + k / 10, 0.75 + k / 10])
        assert (row.get("±"), row["N"]) == (k / 100 or None, 25)
    attack = rows["released-membership-auc"]
    assert (attack["synthetic"], attack["real"], attack["N"], attack["in"]) == (0.6, 0.5, 9, "pixels")
    # With images enough the Fréchet distance comes first.
    fidelity = {**EVALUATION.fidelity, "overall": {**FIDELITY, "n": 2048}}
    assert [*measure_rows([replace(EVALUATION, fidelity=fidelity)])][:2] == ["frechet-distance", "kernel-distance"]


def test_several_sets_are_summarised_by_mean_and_range() -> None:
    fidelity = {**EVALUATION.fidelity, "overall": {**FIDELITY, "frechet-distance": 10.4}}
    other = replace(EVALUATION, fidelity=fidelity, notes=("biased", "small"))
    row = measure_rows([EVALUATION, other])["frechet-distance"]
    assert (row["synthetic"], row["lowest"], row["highest"]) == (pytest.approx(14.4), 10.4, 18.4)
    summary = mean_columns([EVALUATION, other])
    assert summary["notes"] == "biased; small"
    assert "per-class" not in summary


def test_models_are_attacked_in_the_mean_and_at_worst() -> None:
    row = ATTACK.table()["epsilon-membership-auc"]
    assert (row["synthetic"], row["highest"], row["real"], row["N"]) == (pytest.approx(0.65), 0.8, 0.5, 12)
    assert row["in"] == "noise predictions at t = 1, 2"
    found = ATTACK.table()["epsilon-membership-tpr-at-1-percent-fpr"]
    assert (found["synthetic"], found["highest"], found["real"]) == (0.2, 0.4, 0.01)
    assert ATTACK.row()["epsilon-membership"]["south"]["epsilon-members"] == 5


def test_report_of_a_secure_sum_says_towards_whom_it_is_private() -> None:
    summed = task("dp-sum", **{"dp-epsilon": 1.0, "dp-steps": 3, "dp-sampling-rate": 1.0, "num-clients": 3})
    guarantee = privacy_statement(summed.config)
    assert guarantee is not None
    assert guarantee.public is not None
    assert guarantee.public < 0.9 * guarantee.epsilon
    content = report_content(summed, outcome(), "they summed", Costs().row(), Measurements({"": EVALUATION}), [])
    shared = f"ε {rounded_up(guarantee.public)} towards those who see model and images only"
    assert content.headline["differential privacy of the training"] == (
        f"ε 1, δ 1e-05 towards a server that 1 silo may help; {shared}"
    )
    assert "ε = 1, δ = 1e-05 towards a server that 1 silo may help" in content.verdict


def test_report_says_what_was_done_and_found() -> None:
    measured = Measurements({"": EVALUATION}, attack=ATTACK)
    content = report_content(task("pooled"), outcome(), "they sang", Costs(rounds=2).row(), measured, [])
    assert content.title == "pooled on digits, 2 silos"
    said = "4 labelled synthetic images from 2 silos that kept their real images to themselves: they sang."
    assert content.explanation == said
    assert content.headline["rounds"] == 2
    assert content.headline["accuracy on real test images (CNN trained on synthetic)"] == pytest.approx(0.7)
    assert content.silos == [
        {"silo": "north", "training images": 7, "classes": 1, "final loss": 0.25, "training seconds": 3.1}
        | {"stopped at step": 9},
        {"silo": "south", "training images": 5, "classes": 2},
    ]
    assert content.limits == ("biased",)
    assert content.per_class is not None
    assert content.per_class["accuracy-cnn"] == pytest.approx({"a": 0.7, "b": 0.7})
    assert content.per_class["coverage"] == {"a": 0.7}
    assert set(content.result_groups) == {
        *("kernel-distance", "accuracy-logistic-regression", "released-membership-auc", "epsilon-membership-auc")
    }
    assert content.meanings.keys() == content.results.keys()
    assert content.headline["differential privacy of the training"] == "none"
    assert content.headline["do the models show who was trained on? AUC, .5 is guessing"] == 0.8
    assert "did no better than guessing (AUC .80)" in content.verdict, "of 5 images, that is chance"
    assert content.command == "fedsynth run --strategy=pooled --seed=0"
    assert content.origin["data set"] == "digits (dirichlet partition), 2 classes, 8 x 8 pixels, grey"
    assert content.settings is not None
    assert (content.settings["image-size"], content.settings["model"]) == (8, "digits")
    assert {"image-size", "model"} <= set(content.resolved)
    assert "auto" not in content.settings.values()


def test_silos_that_stopped_early_or_copy_are_seen() -> None:
    full = Member(1, "full", 7, [7, 0], [(200, 0.5), (400, 0.25)], 3.0, 0.0)
    stopped = Member(2, "stopped", 7, [7, 0], [(150, 0.5), (300, 0.25)], 2.0, 0.41)
    given = replace(task("pooled"), census=Census([full, stopped]))
    rows = report_content(given, outcome(), "", Costs().row(), Measurements(), []).silos
    assert "stopped at step" not in rows[0], "400 steps are all there were"
    assert rows[1]["stopped at step"] == 300
    assert [row["near-copies"] for row in rows] == [0.0, 0.41]


def test_a_silo_of_another_version_is_named_with_it() -> None:
    members = Member(1, "north", 7, [7, 0], version="0.9.1"), Member(2, "south", 5, [2, 3], version=__version__)
    for census, said in ((members, ["0.9.1", __version__]), (members[1:], [None])):
        given = replace(task("pooled"), census=Census(census))
        rows = report_content(given, outcome(), "", Costs().row(), Measurements(), []).silos
        assert [row.get("fedsynth") for row in rows] == said


def test_report_without_measurements_or_real_images_says_nothing_about_them() -> None:
    content = report_content(
        task("dfd"), outcome(), "", Costs().row(), Measurements(), [{"round": 1, "effective-experts": 2.0}]
    )
    assert content.results == {}
    assert content.real_images is None
    assert content.headline["synthetic images"] == 4
    assert [*content.headline.values()][2:] == ["none", "not measured"]
    assert content.verdict.startswith("How well classifiers learn from the images was not measured")
    assert content.round_keys == ["effective-experts"]
