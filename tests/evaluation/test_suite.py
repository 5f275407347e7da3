from __future__ import annotations

import json

import numpy as np
import pytest

from fedsynth.errors import UserError
from fedsynth.evaluation import evaluate, extract_features, frechet_distance
from fedsynth.evaluation.suite import stratified_subset

COLUMNS = [
    "n", "k", "feature-space", "frechet-distance", "reference-frechet-distance", "precision", "recall", "density",
    "coverage", "n-train",
    "accuracy-logistic-regression", "macro-f1-logistic-regression", "accuracy-mlp", "macro-f1-mlp", "accuracy-cnn",
    "macro-f1-cnn",
    "real-accuracy-logistic-regression", "real-macro-f1-logistic-regression", "real-accuracy-mlp", "real-macro-f1-mlp",
    "real-accuracy-cnn", "real-macro-f1-cnn",
    "synthetic-count", "train-count", "test-count", "nearest-train-distance", "test-nearest-train-distance",
    "nearest-neighbour-ratio", "copied-share", "authenticity", "test-authenticity", "memorisation-space",
    "notes",
]  # fmt: skip


def noisy(images: np.ndarray, deviation: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, deviation, images.shape)
    return (images + noise).clip(0, 255).astype(np.uint8)


def run(digits, images, labels, classifier=None, progress=None, seed=0):
    real = (digits.train_images, digits.train_labels, digits.test_images, digits.test_labels)
    return evaluate(images, labels, *real, 10, seed, progress, classifier)


@pytest.fixture(scope="module")
def on_noisy_digits(digits):
    """A stand-in for a synthetic set: 500 noisy training digits; trains its own feature classifier."""
    phases: list[str] = []
    evaluation = run(digits, noisy(digits.train_images[:500], 40), digits.train_labels[:500], None, phases.append)
    return evaluation, phases


def test_a_row_holds_every_column_as_finite_json(on_noisy_digits):
    row = on_noisy_digits[0].row()
    assert list(row) == COLUMNS
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert (row["n"], row["n-train"], row["k"], row["feature-space"]) == (360, 500, 5, "domain-classifier")


def test_each_phase_is_announced(on_noisy_digits):
    assert on_noisy_digits[1] == [
        "training the feature classifier on the real train fold",
        "measuring fidelity against the real test fold",
        "training classifiers on 500 synthetic images",
        "training classifiers on 500 real images",
        "looking for copies of training images",
    ]


def test_fidelity_is_measured_against_the_test_fold_at_equal_n(digits, classifier, on_noisy_digits):
    images, labels = noisy(digits.train_images[:500], 40), digits.train_labels[:500]
    evaluation = run(digits, images[:360], labels[:360], classifier)
    expected = frechet_distance(
        extract_features(classifier, digits.test_images), extract_features(classifier, images[:360])
    )
    assert evaluation.fidelity.frechet_distance == pytest.approx(expected, rel=1e-6)
    # The shared classifier was trained with the suite's own seed, and the train subset is the same draw.
    reference = on_noisy_digits[0].fidelity.reference_frechet_distance
    assert evaluation.fidelity.reference_frechet_distance == pytest.approx(reference, rel=1e-4)


def test_noisy_digits_lie_behind_real_ones(on_noisy_digits):
    row = on_noisy_digits[0].row()
    assert row["frechet-distance"] > row["reference-frechet-distance"]
    assert row["real-accuracy-cnn"] > 0.95
    assert 0.8 < row["accuracy-cnn"] <= row["real-accuracy-cnn"]


def test_a_tiny_set_is_measured_reproducibly_and_says_so(digits, classifier):
    sets = digits.train_images[:20], digits.train_labels[:20] % 5
    row = run(digits, *sets, classifier).row()
    assert (row["n"], row["n-train"], row["k"]) == (20, 20, 5)
    assert "n = 20 is below 2048" in row["notes"]
    assert "no synthetic images of class 5, 6, 7, 8, 9" in row["notes"]
    assert run(digits, *sets, classifier).row() == row
    assert run(digits, *sets, classifier, seed=1).row() != row


def test_three_images_shrink_k_with_a_note(digits, classifier):
    row = run(digits, digits.train_images[:3], np.array([1, 1, 1]), classifier).row()
    assert (row["n"], row["k"]) == (3, 2)
    assert "k = 2 neighbours in place of 5" in row["notes"]
    assert json.dumps(row, allow_nan=False)


def test_a_subset_keeps_class_shares():
    labels = np.repeat([0, 1, 2], [500, 300, 100])
    rng = np.random.default_rng(0)
    chosen = stratified_subset(labels, 90, rng)
    assert len(set(chosen.tolist())) == 90
    np.testing.assert_allclose(np.bincount(labels[chosen]), [50, 30, 10], atol=2)
    np.testing.assert_array_equal(stratified_subset(labels, 900, rng), np.arange(900))


def test_a_subset_is_random_within_a_class():
    labels = np.zeros(100, int)
    rng = np.random.default_rng(0)
    hits = np.bincount(np.concatenate([stratified_subset(labels, 10, rng) for _ in range(400)]), minlength=100)
    # Each image is drawn with probability 0.1: 40 of 400 times, standard deviation 6.
    assert hits.min() > 12
    assert hits.max() < 72


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((1, 8, 8, 1), np.uint8), np.zeros(1, int), "synthetic images: 1 image, at least 2"),
        (np.zeros((4, 16, 16, 1), np.uint8), np.zeros(4, int), r"synthetic images: images are \(16, 16, 1\)"),
        (np.zeros((4, 8, 8, 3), np.uint8), np.zeros(4, int), r"\(8, 8, 3\), the real training images are \(8, 8, 1\)"),
        (np.full((4, 8, 8, 1), np.nan), np.zeros(4, int), "synthetic images: expected uint8"),
        (np.zeros((4, 8, 8, 1), np.uint8), np.full(4, 12), "synthetic images: labels run from 12 to 12"),
    ],
)
def test_unusable_synthetic_sets_are_refused(digits, classifier, images, labels, message):
    with pytest.raises(UserError, match=message):
        run(digits, images, labels, classifier)


def test_copies_of_training_images_are_found(digits, classifier):
    copied = run(digits, digits.train_images[:300], digits.train_labels[:300], classifier).row()
    assert (copied["copied-share"], copied["nearest-neighbour-ratio"], copied["authenticity"]) == (1.0, 0.0, 0.0)
    # The test fold was never trained on.
    fresh = run(digits, digits.test_images[:200], digits.test_labels[:200], classifier).row()
    assert fresh["copied-share"] == pytest.approx(0.05, abs=0.03)
    assert fresh["nearest-neighbour-ratio"] == pytest.approx(1.0, abs=0.1)
    assert fresh["authenticity"] == pytest.approx(fresh["test-authenticity"], abs=0.1)


def test_copies_that_cannot_be_judged_are_a_note(digits, classifier):
    images, labels = digits.train_images[:40], digits.train_labels[:40]
    evaluation = evaluate(images, labels, images, labels, images, labels, 10, 0, classifier=classifier)
    assert evaluation.memorisation is None
    assert any(note.startswith("no copy check: test: more than half") for note in evaluation.notes)
