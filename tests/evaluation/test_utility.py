from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import resnet18

from fedsynth.errors import UserError
from fedsynth.evaluation import utility as module
from fedsynth.evaluation.networks.resnet import ResNetClassifier
from fedsynth.evaluation.utility import CLASSIFIERS, DEFAULT_CLASSIFIERS, Scores, _scores, utility_scores


@pytest.fixture(scope="module", autouse=True)
def short_training():
    """A third of the budgets is enough for these sets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CNN_STEPS", 60)
        patch.setattr(module, "MLP_STEPS", 300)
        yield


def separable(labels: list[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 8, 8, 1) whose brightness is their label's, 0 to 2."""
    noise = np.random.default_rng(seed).integers(0, 40, (len(labels), 8, 8, 1))
    return (np.array(labels)[:, None, None, None] * 100 + noise).astype(np.uint8), np.array(labels)


def test_scores_are_the_counts_of_every_seed_averaged():
    # Class 3 has no test image and is predicted once, class 2 is never predicted.
    truth = np.array([0, 0, 0, 1, 1, 2])
    first, second = np.array([0, 0, 1, 1, 1, 3]), np.array([0, 0, 0, 1, 1, 0])
    scores = _scores(truth, [first, second], num_classes=4)
    precision = np.array([[2 / 2, 2 / 3, 0, 0], [3 / 4, 2 / 2, 0, 0]])
    recall = np.array([[2 / 3, 2 / 2, 0, 0], [3 / 3, 2 / 2, 0, 0]])
    f1 = np.array([[4 / 5, 4 / 5, 0, 0], [6 / 7, 1, 0, 0]])
    assert scores.accuracy == pytest.approx((4 / 6 + 5 / 6) / 2)
    # Half of the difference is the standard error of two values; t(0.975, 1) = 12.7062.
    assert scores.accuracy_interval == pytest.approx(12.7062 / 12, rel=1e-5)
    assert scores.macro_precision == pytest.approx(precision.mean())
    assert scores.macro_recall == pytest.approx(recall.mean())
    assert scores.macro_f1 == pytest.approx(f1.mean())
    assert scores.per_class_recall == pytest.approx(recall.mean(axis=0))
    assert scores.per_class_f1 == pytest.approx(f1.mean(axis=0))


def test_separable_classes_are_learnt_and_a_missing_one_counts_as_error():
    test_set = separable([0, 0, 1, 1, 1, 2], seed=1)
    full = utility_scores(*separable([0, 1, 2] * 6), *test_set, num_classes=3, seed=0, num_seeds=1)
    without = utility_scores(*separable([0, 2] * 6), *test_set, num_classes=3, seed=0, num_seeds=1)
    for name in DEFAULT_CLASSIFIERS:
        assert full[name] == Scores(1.0, 1.0, 1.0, 1.0, None, (1.0,) * 3, (1.0,) * 3)
        assert without[name].accuracy == pytest.approx(3 / 6)
        assert without[name].per_class_recall == (1.0, 0.0, 1.0)
        assert without[name].macro_recall == pytest.approx(2 / 3)
        # The three images of class 1 are false positives of classes 0 and 2.
        assert without[name].macro_precision < 2 / 3


def test_a_single_class_is_always_predicted(digits):
    labels = np.full(20, 3)
    images = digits.train_images[:20]
    scores = utility_scores(images, labels, digits.test_images, digits.test_labels, 10, seed=0, classifiers=CLASSIFIERS)
    share = (digits.test_labels == 3).mean()
    # Ten classes, nine of them with F1 = 0; the tenth has recall 1 and precision = share.
    f1 = 2 * share / (1 + share)
    assert tuple(scores) == CLASSIFIERS
    for each in scores.values():
        assert each.accuracy == pytest.approx(share)
        assert each.accuracy_interval is None
        assert each.macro_precision == pytest.approx(share / 10)
        assert each.macro_recall == pytest.approx(1 / 10)
        assert each.macro_f1 == pytest.approx(f1 / 10)
        assert each.per_class_f1[3] == pytest.approx(f1)


def test_equal_seeds_equal_scores_and_another_seed_another_mlp(digits, monkeypatch):
    sets = (digits.train_images[:40], digits.train_labels[:40], digits.test_images, digits.test_labels)
    monkeypatch.setattr(module, "CNN_STEPS", 5)
    monkeypatch.setattr(module, "MLP_STEPS", 50)
    first, again = (utility_scores(*sets, 10, seed=3, num_seeds=1) for _ in range(2))
    assert first == again
    other = utility_scores(*sets, 10, seed=4, classifiers=["logistic-regression", "mlp"], num_seeds=1)
    assert other["mlp"] != first["mlp"]
    assert other["logistic-regression"] == first["logistic-regression"]


def test_scores_do_not_depend_on_the_number_of_threads(digits, monkeypatch):
    monkeypatch.setattr(module, "CNN_STEPS", 10)
    monkeypatch.setattr(module, "MLP_STEPS", 20)
    sets = (digits.train_images[:60], digits.train_labels[:60], digits.test_images, digits.test_labels)
    given, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(utility_scores(*sets, 10, seed=3, num_seeds=3))
    finally:
        torch.set_num_threads(given)
    assert found[0] == found[1] == found[2]
    assert found[0]["cnn"].accuracy_interval > 0


def test_the_resnet_starts_from_the_file_with_a_seed_a_training(monkeypatch, tmp_path):
    torch.save(resnet18().state_dict(), tmp_path / "weights.pth")
    trained = []

    def train(*arguments, **options):
        trained.append((arguments[3], options["weights"].keys()))
        return ResNetClassifier(8, 2)

    monkeypatch.setattr(module, "train_resnet", train)
    sets = (*separable([0, 1]), *separable([0, 1]))
    utility_scores(*sets, 2, 0, classifiers=["resnet"], num_seeds=2, resnet_weights=tmp_path / "weights.pth")
    assert len({seed for seed, _ in trained}) == 2
    assert all("conv1.weight" in weights for _, weights in trained)


def test_a_wrong_file_is_reported_before_any_classifier_trains(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "train_domain_classifier", pytest.fail)
    sets = (*separable([0, 1]), *separable([0, 1]))
    with pytest.raises(UserError, match=r"resnet-weights-path = .*missing\.pth"):
        utility_scores(*sets, 2, 0, classifiers=["cnn", "resnet"], resnet_weights=tmp_path / "missing.pth")


def test_a_file_is_of_no_concern_without_the_resnet():
    sets = (*separable([0, 1] * 3), *separable([0, 1]))
    utility_scores(*sets, 2, 0, classifiers=["logistic-regression"], resnet_weights=Path("missing.pth"))


def test_rows_have_one_column_a_measure_and_the_interval_if_there_is_one():
    scores = Scores(0.5, 0.4, 0.3, 0.2, 0.1, (0.6, 0.0), (0.4, 0.0))
    row = {"accuracy-cnn": 0.5, "macro-precision-cnn": 0.4, "macro-recall-cnn": 0.3, "macro-f1-cnn": 0.2}
    assert scores.row("cnn") == {**row, "accuracy-cnn-interval": 0.1}
    without = Scores(0.5, 0.4, 0.3, 0.2, None, (0.6, 0.0), (0.4, 0.0))
    assert without.row("cnn") == row


def test_images_of_unequal_size_are_refused(digits):
    with pytest.raises(UserError, match=r"test images: images are \(9, 8, 1\)"):
        utility_scores(
            digits.train_images, digits.train_labels, np.zeros((2, 9, 8, 1), np.uint8), np.zeros(2, int), 10, 0
        )


def test_unknown_classifiers_and_too_few_seeds_are_refused():
    sets = (*separable([0, 1]), *separable([0, 1]))
    with pytest.raises(UserError, match="unknown classifiers 'resent': did you mean 'resnet'"):
        utility_scores(*sets, 2, 0, classifiers=["resent"])
    with pytest.raises(UserError, match="classifier-seeds = 0: at least 1"):
        utility_scores(*sets, 2, 0, num_seeds=0)
