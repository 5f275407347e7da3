from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fedsynth.data import LabelledImages
from fedsynth.errors import UserError
from fedsynth.evaluation import DomainClassifier, extract_features, precision_recall_density_coverage
from fedsynth.evaluation.networks.domain_classifier import predict_labels
from fedsynth.evaluation.silo_measures import (
    HeldOutMeasures,
    coverage,
    hash_weights,
    load_classifier,
    measure_held_out,
    real_statistics,
)
from fedsynth.spec import ImageSpec

DIGITS = ImageSpec(1, 8, tuple("0123456789"))
# A network's last digits change with the batch that an image is in.
SAME_FEATURES = 1e-6


def coverage_by_hand(held_out: np.ndarray, train: np.ndarray, synthetic: np.ndarray, k: int) -> float:
    """Naeem et al. 2020, one held-out sample after another."""
    real, covered = [*held_out, *train], 0
    for i, point in enumerate(held_out):
        others = sorted(math.dist(point, other) for j, other in enumerate(real) if j != i)
        covered += min(math.dist(point, sample) for sample in synthetic) <= others[k - 1]
    return covered / len(held_out)


@pytest.mark.parametrize(("n", "others", "m", "k"), [(30, 0, 20, 1), (30, 90, 40, 5), (300, 7, 25, 3)])
def test_coverage_is_what_the_paper_says(n: int, others: int, m: int, k: int) -> None:
    rng = np.random.default_rng(n)
    held_out, train, synthetic = (rng.normal(size=(size, 4)) for size in (n, others, m))
    synthetic += 1.5
    expected = coverage_by_hand(held_out, train, synthetic, k)
    assert coverage(held_out, train, synthetic, k) == expected
    assert coverage(held_out[::-1], rng.permutation(train), rng.permutation(synthetic), k) == expected
    assert 0 < expected < 1
    if not others:
        assert precision_recall_density_coverage(held_out, synthetic, k)["coverage"] == expected


NONE = np.empty((0, 2))


def test_border_of_a_ball_belongs_to_it() -> None:
    real = np.array([[0.0, 0.0], [1.0, 0.0], [3.0, 0.0]])
    assert coverage(real, NONE, np.array([[-1.0, 0.0], [99.0, 0.0]]), k=1) == 1 / 3
    assert coverage(real, NONE, np.array([[-1.0 - 1e-9, 0.0], [99.0, 0.0]]), k=1) == 0
    assert coverage(real, NONE, real, k=1) == 1


def test_training_samples_narrow_the_balls_and_have_none_of_their_own() -> None:
    held_out, synthetic = np.array([[0.0, 0.0], [4.0, 0.0]]), np.array([[2.0, 0.0], [2.0, 9.0]])
    assert coverage(held_out, NONE, synthetic, k=1) == 1
    assert coverage(held_out, np.array([[1.0, 0.0]]), synthetic, k=1) == 1 / 2
    assert coverage(held_out, np.array([[1.0, 0.0], [5.0, 0.0]]), synthetic, k=1) == 0


@pytest.mark.parametrize("k", [0, 6])
def test_coverage_needs_k_other_samples(k: int) -> None:
    with pytest.raises(UserError, match=f"k = {k}: allowed is 1 to 5"):
        coverage(np.eye(6)[:4], np.eye(6)[4:], np.eye(6), k)


def test_statistics_are_those_of_all_parts_together(digits, classifier: DomainClassifier) -> None:
    images = digits.test_images[:90]
    shift = np.linspace(-1, 1, 64)
    statistics = real_statistics(classifier, (images[:70], images[:0], images[70:]), shift)
    differences = extract_features(classifier, images).astype(np.float64) - shift
    assert statistics.n == 90
    assert statistics.total == pytest.approx(sum(differences), rel=SAME_FEATURES, abs=1e-5)
    assert statistics.products == pytest.approx(sum(np.outer(d, d) for d in differences), rel=SAME_FEATURES, abs=1e-5)


def test_measures_of_held_out_images_by_hand(digits, classifier: DomainClassifier) -> None:
    labels = digits.test_labels[:60].copy()
    labels[:9] = (labels[:9] + 1) % 9
    held_out = LabelledImages(digits.test_images[:60], labels, DIGITS.classes)
    train = LabelledImages(digits.train_images[100:200], digits.train_labels[100:200], DIGITS.classes)
    synthetic = extract_features(classifier, digits.train_images[:100])
    measures = measure_held_out(classifier, held_out.images, labels, train.images, synthetic, 10)
    predicted = predict_labels(classifier, held_out.images)
    assert measures.label_counts == tuple(sum(labels == c) for c in range(10))
    assert measures.label_correct == tuple(sum((labels == c) & (predicted == c)) for c in range(10))
    assert measures.n == 60
    assert measures.accuracy == np.mean(predicted == labels) < 0.9
    real = [extract_features(classifier, part.images) for part in (held_out, train)]
    assert measures.coverage == coverage_by_hand(real[0], real[1], synthetic, 5)
    assert 0.5 < measures.coverage < 1
    measures.check(10, 60)


GOOD = HeldOutMeasures((4, 3, 0), (4, 1, 0), 0.5)


@pytest.mark.parametrize(
    ("answer", "num_classes", "n"),
    [
        (GOOD, 4, 7),
        (HeldOutMeasures((4, 3, 0), (4, 1), 0.5), 3, 7),
        (HeldOutMeasures((4, 3, 0), (4, 4, 0), 0.5), 3, 7),
        (HeldOutMeasures((8, -1, 0), (4, -1, 0), 0.5), 3, 7),
        (HeldOutMeasures((4, 3, 0), (4, 1, 0), math.nan), 3, 7),
        (HeldOutMeasures((4, 3, 0), (4, 1, 0), 1.01), 3, 7),
    ],
)
def test_measures_that_no_images_have_are_refused(answer: HeldOutMeasures, num_classes: int, n: int) -> None:
    GOOD.check(3, 7)
    with pytest.raises(ValueError, match=r"classes|classified|coverage"):
        answer.check(num_classes, n)


def test_classifier_arrives_as_it_was_and_draws_no_random_number(digits, classifier: DomainClassifier) -> None:
    weights = classifier.state_dict()
    before = torch.get_rng_state()
    arrived = load_classifier(weights, DIGITS, hash_weights(weights))
    assert torch.equal(torch.get_rng_state(), before)
    assert not arrived.training
    images = digits.test_images[:20]
    np.testing.assert_array_equal(extract_features(arrived, images), extract_features(classifier, images))


def test_hash_knows_every_value_name_and_type_but_no_order() -> None:
    weights = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[3.0]])}
    changed = [
        {**weights, "a": torch.tensor([1.0, 2.0000002])},
        {**weights, "a": torch.tensor([[1.0, 2.0]])},
        {**weights, "a": torch.tensor([1.0, 2.0], dtype=torch.float64)},
        {"c": weights["a"], "b": weights["b"]},
        {"a": weights["a"]},
    ]
    hashes = {hash_weights(other) for other in changed}
    assert len(hashes - {hash_weights(weights)}) == 5
    assert hash_weights(dict(reversed(weights.items()))) == hash_weights(weights)


def test_other_weights_are_refused(classifier: DomainClassifier) -> None:
    weights = classifier.state_dict()
    with pytest.raises(UserError, match="weights-hash"):
        load_classifier({**weights, "head.bias": weights["head.bias"] + 1e-6}, DIGITS, hash_weights(weights))
    fewer = {name: tensor for name, tensor in weights.items() if name != "head.bias"}
    coloured, one_class = ImageSpec(3, 8, DIGITS.classes), ImageSpec(1, 8, ("a",))
    for misfit, spec in ((fewer, DIGITS), (weights, coloured), (weights, one_class)):
        with pytest.raises(UserError, match="one fedsynth"):
            load_classifier(misfit, spec, hash_weights(misfit))
