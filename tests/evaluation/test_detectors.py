"""Sets with one known fault each: the measures that should notice do, by much, and the others stay quiet."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.detectors import CONTROL, EXPECTED, WORSE, faulty_sets, flagged, measure, take
from fedsynth.data import load_dataset
from fedsynth.evaluation import Settings

COPIES = ("the training set itself", "training set, ±10 grey levels")
ACCURACY = "accuracy-logistic-regression"
FIDELITY = ("kernel-distance", "frechet-distance", "precision", "recall", "density", "coverage")


@pytest.fixture(scope="module")
def rows():
    """The columns of every set, on one split and with the fastest classifier."""
    return measure(0, Settings("domain-classifier", classifiers=("logistic-regression",), classifier_seeds=1))


@pytest.fixture(scope="module")
def sets():
    train, test = load_dataset("digits")
    trained_on, unseen = take(train, len(test), np.random.default_rng(0))
    return trained_on, unseen, faulty_sets(trained_on, unseen, 0)


def test_all_sets_are_compared_at_one_size(rows):
    sizes = {(row["n"], row["n-train"], row["synthetic-count"], row["train-count"]) for row in rows.values()}
    assert sizes == {(360, 360, 360, 360)}


def test_fresh_real_images_are_no_cause_for_alarm(rows):
    row = rows[CONTROL]
    assert min(row["precision"], row["recall"], row["coverage"]) > 0.9
    assert row["density"] == pytest.approx(1, abs=0.15)
    assert row[ACCURACY] > 0.9
    # About two standard errors of a share of 5 % with 360 images on each side, and of the area.
    assert row["copied-share"] == pytest.approx(0.05, abs=0.03)
    assert row["released-membership-auc"] == pytest.approx(0.5, abs=0.045)
    assert row["nearest-neighbour-ratio"] == pytest.approx(1, abs=0.1)
    assert row["authenticity"] == pytest.approx(row["test-authenticity"], abs=0.1)


@pytest.mark.parametrize("name", COPIES)
def test_copies_are_seen_by_the_measures_of_copying_alone(rows, name):
    row, control = rows[name], rows[CONTROL]
    assert row["copied-share"] > 0.95
    assert row["authenticity"] < 0.05
    assert row["nearest-neighbour-ratio"] < 0.2
    assert row["released-membership-auc"] > 0.9
    if name == "the training set itself":
        assert (row["nearest-neighbour-ratio"], row["copied-share"], row["authenticity"]) == (0, 1, 0)
        assert row["released-membership-auc"] == 1
    assert row[ACCURACY] == pytest.approx(control[ACCURACY], abs=0.05)
    for measure_name in ("precision", "recall", "density", "coverage"):
        assert row[measure_name] == pytest.approx(control[measure_name], abs=0.1)


def test_what_is_no_copy_is_not_taken_for_one(rows):
    for name in set(EXPECTED) - set(COPIES):
        row = rows[name]
        assert row["copied-share"] < 0.15, name
        assert row["nearest-neighbour-ratio"] > 0.85, name
        assert row["authenticity"] > 0.35, name
        assert row["released-membership-auc"] == pytest.approx(0.5, abs=0.07), name


def test_missing_classes_lower_recall_and_coverage_but_not_precision(rows):
    row, control = rows["5 of 10 classes"], rows[CONTROL]
    assert row["recall"] < control["recall"] - 0.3
    assert row["coverage"] < control["coverage"] - 0.3
    assert row["precision"] > control["precision"] - 0.05
    assert row[ACCURACY] == pytest.approx(0.5, abs=0.05)


def test_average_digits_lower_recall_but_not_precision(rows):
    row, control = rows["nearest to the class means"], rows[CONTROL]
    assert row["recall"] < control["recall"] - 0.2
    assert row["precision"] >= control["precision"]
    # A real image is covered by any one near it, and a third of each class is enough for that.
    assert control["coverage"] - 0.15 < row["coverage"] < control["coverage"]


def test_noise_is_far_from_everything_real(rows):
    row, control = rows["uniform noise"], rows[CONTROL]
    assert max(row["precision"], row["density"], row["coverage"]) < 0.1
    assert row["frechet-distance"] > 20 * control["frechet-distance"]
    assert row[ACCURACY] < 0.25
    assert row["copied-share"] == 0


def test_blurred_digits_are_far_in_distribution(rows):
    row, control = rows["blurred"], rows[CONTROL]
    assert row["frechet-distance"] > 10 * control["frechet-distance"]
    assert row["kernel-distance"] > control["kernel-distance"] + 50
    assert row["density"] < control["density"] - 0.2


def test_wrong_labels_are_seen_by_utility_alone(rows):
    row, control = rows["labels shuffled"], rows[CONTROL]
    assert row[ACCURACY] < 0.25
    same = (*FIDELITY, "nearest-neighbour-ratio", "copied-share", "authenticity", "released-membership-auc")
    assert {name: row[name] for name in same} == {name: control[name] for name in same}


def test_nothing_flags_other_fresh_images(rows):
    comparable = {name: {**rows[name], "accuracy-cnn": rows[name][ACCURACY]} for name in EXPECTED}
    assert flagged(comparable["other fresh real images"], comparable[CONTROL]) == set()
    assert flagged(comparable[CONTROL], comparable[CONTROL]) == set()


def test_a_measure_flags_in_the_direction_for_the_worse_only():
    control = dict.fromkeys(WORSE, 0.5)
    for name, change in WORSE.items():
        assert flagged({**control, name: 0.5 + 1.01 * change}, control) == {name}
        assert flagged({**control, name: 0.5 + 0.99 * change}, control) == set()
        assert flagged({**control, name: 0.5 - 9 * change}, control) == set()


def test_the_faults_are_what_their_names_say(sets):
    trained_on, unseen, by_name = sets
    real, seen = ({image.tobytes() for image in each.images} for each in (unseen, trained_on))
    kept = by_name["5 of 10 classes"]
    assert {image.tobytes() for image in kept.images} <= real
    assert np.count_nonzero(kept.label_counts()) == 5
    near = by_name[COPIES[1]].images.astype(int) - trained_on.images
    assert (near.min(), near.max()) == (-10, 10)
    fresh, shuffled = by_name[CONTROL], by_name["labels shuffled"]
    assert (fresh.label_counts() == shuffled.label_counts()).all()
    assert (fresh.labels == shuffled.labels).mean() < 0.2
    assert not {image.tobytes() for image in fresh.images} & seen
