from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.special import rel_entr, softmax
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from fedsynth.errors import UserError
from fedsynth.evaluation import frechet_distance
from fedsynth.evaluation.fidelity import (
    _short_seed,
    fidelity_measures,
    frechet_distance_of_moments,
    inception_score,
    kernel_distance,
    measure,
)
from fedsynth.evaluation.networks.extractor import Extracted
from fedsynth.evaluation.networks.extractors import ClassifierExtractor


def oracle(real: np.ndarray, synthetic: np.ndarray) -> float:
    first, second = np.cov(real.T), np.cov(synthetic.T)
    shift = real.mean(axis=0) - synthetic.mean(axis=0)
    return float(shift @ shift + np.trace(first + second - 2 * sqrtm(first @ second).real))


@pytest.mark.parametrize("ranks", [(16, 16), (5, 16), (5, 9), (3, 3)])
def test_agrees_with_scipy_and_torch_fidelity_on_covariances_of_any_rank(ranks):
    rng = np.random.default_rng(7)
    real, synthetic = (rng.normal(size=(100, rank)) @ rng.normal(size=(rank, 16)) for rank in ranks)
    theirs = fid_statistics_to_metric(
        *(fid_features_to_statistics(torch.from_numpy(side)) for side in (real, synthetic)), verbose=False
    )["frechet_inception_distance"]
    measured = frechet_distance(real, synthetic)
    assert measured == pytest.approx(oracle(real, synthetic), rel=1e-5)
    assert measured == pytest.approx(theirs, rel=1e-5)


def test_thin_and_square_factors_give_one_distance():
    """With fewer samples than dimensions the covariance is not formed; its moments must say the same."""
    rng = np.random.default_rng(8)
    real, synthetic = rng.normal(size=(9, 12)), rng.normal(size=(40, 12)) + 0.3
    moments = [moment for side in (real, synthetic) for moment in (side.mean(axis=0), np.cov(side.T))]
    assert frechet_distance(real, synthetic) == pytest.approx(frechet_distance_of_moments(*moments), rel=1e-6)


def test_identical_sets_and_constant_sets_are_at_distance_zero():
    rng = np.random.default_rng(4)
    full, flat = rng.normal(size=(100, 16)), rng.normal(size=(100, 3)) @ rng.normal(size=(3, 16))
    assert frechet_distance(full, full) == pytest.approx(0.0, abs=1e-10)
    assert frechet_distance(flat, flat) == pytest.approx(0.0, abs=1e-10)
    assert frechet_distance(np.ones((3, 4)), np.ones((9, 4))) == 0.0


@pytest.mark.parametrize(
    ("synthetic", "message"),
    [
        (np.full((5, 3), np.nan), "5 of 5 samples are NaN"),
        (np.array([[0.0, 0.0, 0.0], [np.inf, 0.0, 0.0]]), "1 of 2 samples"),
        (np.zeros((1, 3)), "at least 2"),
        (np.zeros((5, 2)), "3-dimensional.*2-dimensional"),
        (np.zeros(5), r"\(N, D\)"),
    ],
)
def test_unusable_features_are_refused(synthetic, message):
    with pytest.raises(UserError, match=message):
        frechet_distance(np.eye(3), synthetic)


def kernel_oracle(real: np.ndarray, synthetic: np.ndarray) -> float:
    """The unbiased estimate, one pair at a time."""

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return float(sum(a * b for a, b in zip(x, y, strict=True)) / len(x) + 1) ** 3

    m, n = len(real), len(synthetic)
    within_real = sum(kernel(real[i], real[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    within_synthetic = sum(kernel(synthetic[i], synthetic[j]) for i in range(n) for j in range(n) if i != j)
    return within_real + within_synthetic / (n * (n - 1)) - 2 * np.mean([kernel(x, y) for x in real for y in synthetic])


def test_kernel_distance_is_the_mean_of_the_unbiased_estimate_over_subsets_of_half():
    rng = np.random.default_rng(9)
    real, synthetic = rng.normal(size=(9, 3)), rng.normal(size=(7, 3)) + 0.5
    drawn = np.random.RandomState(_short_seed(4, "kernel-distance"))
    estimates = [
        kernel_oracle(real[drawn.choice(9, 3, replace=False)], synthetic[drawn.choice(7, 3, replace=False)])
        for _ in range(100)
    ]
    mean, spread = kernel_distance(real, synthetic, seed=4)
    assert mean == pytest.approx(np.mean(estimates), rel=1e-10)
    assert spread == pytest.approx(np.std(estimates), rel=1e-10)


def test_two_samples_a_side_have_a_kernel_distance():
    real, synthetic = np.array([[0.0], [2.0]]), np.array([[1.0], [1.0]])
    assert kernel_distance(real, synthetic, 0) == pytest.approx((kernel_oracle(real, synthetic), 0.0))


def test_score_agrees_with_the_formula_and_does_not_depend_on_a_constant():
    logits = np.random.default_rng(12).normal(size=(120, 5)) * 3
    answers = softmax(logits, axis=1)
    expected = np.exp(rel_entr(answers, answers.mean(axis=0)).sum(axis=1).mean())
    assert inception_score(logits, 0) == (pytest.approx(expected, rel=1e-12), None)
    assert inception_score(logits + 1000, 0) == (pytest.approx(expected, rel=1e-9), None)


def test_score_runs_from_one_to_the_number_of_classes():
    assert inception_score(np.zeros((50, 10)), 0) == (pytest.approx(1.0), None)
    certain = 1e5 * np.eye(10)[np.arange(150) % 10]
    assert inception_score(certain, 0) == (pytest.approx(10.0), None)
    assert inception_score(certain[:1], 0) == (pytest.approx(1.0), None)


def test_score_of_many_images_has_a_spread_over_ten_parts_fixed_by_the_seed():
    logits = np.random.default_rng(13).normal(size=(1000, 5)).astype(np.float32)
    mean, spread = inception_score(logits, 1)
    assert 0 < spread < 0.1 * mean
    assert inception_score(logits, 1) == (mean, spread) != inception_score(logits, 2)


@pytest.mark.parametrize("logits", [np.full((5, 2), np.nan), np.zeros((0, 2)), np.zeros(5)])
def test_unusable_logits_are_refused(logits):
    with pytest.raises(UserError, match="finite ones of at least one image"):
        inception_score(logits, 0)


CLASSES = tuple("0123456789")
OVERLAP = ("precision", "recall", "density", "coverage")


@pytest.fixture(scope="module")
def real(digits, classifier) -> Extracted:
    return ClassifierExtractor(classifier).extract(digits.test_images)


@pytest.fixture(scope="module")
def unseen(digits, classifier) -> Extracted:
    return ClassifierExtractor(classifier).extract(digits.train_images[:500])


def test_identical_sets_are_at_distance_zero_and_overlap_wholly(real):
    measured = measure(real, real, seed=0)
    assert [measured[name] for name in OVERLAP] == [1.0] * 4
    assert measured["frechet-distance"] == pytest.approx(0.0, abs=1e-9)
    # Unbiased for independent samples; of one sample twice, x with itself counts: -2/N (mean k(x,x) - mean k(x,y)).
    kernel = (real.features.astype(np.float64) @ real.features.T / 64 + 1) ** 3
    n = len(kernel)
    off_diagonal = (kernel.sum() - np.trace(kernel)) / (n * (n - 1))
    expected = -2 / n * (np.trace(kernel) / n - off_diagonal)
    assert measured["kernel-distance"] == pytest.approx(expected, abs=4 * measured["kernel-distance-std"] / 10)
    assert (measured["n"], measured["k"]) == (360, 5)
    assert 8 < measured["inception-score"] <= 10


def test_all_measures_are_those_of_equal_subsets_and_fixed_by_the_seed(digits, real, unseen):
    measured = [
        fidelity_measures(real, unseen, digits.test_labels, digits.train_labels[:500], CLASSES, seed)
        for seed in (3, 3, 4)
    ]
    assert measured[0] == measured[1]
    assert measured[0]["overall"] != measured[2]["overall"]
    assert measured[0]["overall"]["n"] == 360
    assert measured[0]["left-out"] == {}
    for index, name in enumerate(CLASSES):
        of_class = measured[0]["per-class"][name]
        sides = digits.test_labels == index, digits.train_labels[:500] == index
        assert (of_class["n"], of_class["k"]) == (min(side.sum() for side in sides), 5)
        assert "inception-score" not in of_class
    assert all(isinstance(value, int | float) for value in measured[0]["overall"].values())


def test_a_class_is_measured_within_itself(digits, real):
    """Swapping the labels of two classes leaves the overall measures alone and ruins those of the two."""
    swapped = digits.test_labels.copy()
    swapped[digits.test_labels == 3], swapped[digits.test_labels == 5] = 5, 3
    measured = fidelity_measures(real, real, digits.test_labels, swapped, CLASSES, 0)
    assert measured["overall"]["coverage"] == 1.0
    assert measured["per-class"]["4"]["frechet-distance"] == pytest.approx(0.0, abs=1e-9)
    assert measured["per-class"]["3"]["frechet-distance"] > 1.0
    assert measured["per-class"]["5"]["coverage"] < 0.2


def test_classes_that_cannot_be_measured_alone_are_left_out_by_name(digits, real, unseen):
    chosen = np.flatnonzero(digits.train_labels[:500] < 2)
    few = np.concatenate([chosen, np.flatnonzero(digits.train_labels[:500] == 2)[:19]])
    labels = digits.train_labels[:500][few]
    measured = fidelity_measures(real, unseen[few], digits.test_labels, labels, CLASSES, 0)
    assert set(measured["per-class"]) == {"0", "1"}
    assert set(measured["left-out"]) == set("23456789")
    twos = (digits.test_labels == 2).sum()
    assert measured["left-out"]["2"] == f"{twos} real and 19 synthetic images, 20 of each are needed"
    flat = Extracted(np.where((digits.test_labels == 6)[:, None], 1.0, real.features).astype(np.float32))
    measured = fidelity_measures(flat, real, digits.test_labels, digits.test_labels, CLASSES, 0)
    assert measured["left-out"] == {"6": "the features of all real images are equal"}


@pytest.mark.parametrize(
    ("real_features", "synthetic_features", "k", "message"),
    [
        (np.ones((9, 2)), np.eye(9, 2), 5, "features of all are equal.*check the images"),
        (np.eye(9, 2), np.full((9, 2), np.nan), 5, "9 of 9 samples are NaN"),
        (np.eye(9, 2), np.eye(5, 2), 5, "k = 5: allowed is 1 to 4"),
    ],
)
def test_unusable_sets_are_refused(real_features, synthetic_features, k, message):
    with pytest.raises(UserError, match=message):
        measure(Extracted(real_features), Extracted(synthetic_features), 0, k)
