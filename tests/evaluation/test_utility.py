from __future__ import annotations

import warnings

import numpy as np
import pytest

from fedsynth.errors import UserError
from fedsynth.evaluation import CLASSIFIERS, utility


@pytest.fixture(scope="module")
def on_real(digits):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return utility(
            digits.train_images[:600], digits.train_labels[:600], digits.test_images, digits.test_labels, 10, seed=0
        )


def test_real_digits_teach_every_classifier_without_a_warning(on_real):
    assert set(on_real) == {f"{measure}-{name}" for measure in ("accuracy", "macro-f1") for name in CLASSIFIERS}
    assert min(on_real.values()) > 0.93


def test_shuffled_labels_teach_nothing(digits, on_real):
    shuffled = np.random.default_rng(0).permutation(digits.train_labels[:600])
    scores = utility(digits.train_images[:600], shuffled, digits.test_images, digits.test_labels, 10, seed=0)
    for name in CLASSIFIERS:
        assert scores[f"accuracy-{name}"] < 0.35
        assert scores[f"accuracy-{name}"] < on_real[f"accuracy-{name}"]


def test_missing_classes_count_as_errors(digits):
    kept = digits.train_labels[:600] < 5
    scores = utility(
        digits.train_images[:600][kept], digits.train_labels[:600][kept], digits.test_images, digits.test_labels, 10, 0
    )
    share = (digits.test_labels < 5).mean()
    for name in CLASSIFIERS:
        assert 0.9 * share < scores[f"accuracy-{name}"] <= share
        assert scores[f"macro-f1-{name}"] < scores[f"accuracy-{name}"]


@pytest.mark.parametrize("count", [1, 20])
def test_a_single_class_is_always_predicted(digits, count):
    labels = np.full(count, 3)
    scores = utility(digits.train_images[:count], labels, digits.test_images, digits.test_labels, 10, seed=0)
    share = (digits.test_labels == 3).mean()
    # Ten classes, nine of them with F1 = 0; the tenth has recall 1 and precision = share.
    f1 = 2 * share / (1 + share) / 10
    for name in CLASSIFIERS:
        assert scores[f"accuracy-{name}"] == pytest.approx(share)
        assert scores[f"macro-f1-{name}"] == pytest.approx(f1)


def test_same_seed_same_scores(digits):
    sets = (digits.train_images[:60], digits.train_labels[:60], digits.test_images, digits.test_labels)
    assert utility(*sets, 10, seed=3) == utility(*sets, 10, seed=3)


def test_images_of_unequal_size_are_refused(digits):
    with pytest.raises(UserError, match=r"test images: images are \(9, 8, 1\)"):
        utility(digits.train_images, digits.train_labels, np.zeros((2, 9, 8, 1), np.uint8), np.zeros(2, int), 10, 0)
