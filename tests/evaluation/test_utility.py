from __future__ import annotations

import functools
import importlib
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.models import resnet18

from fedsynth.errors import UserError
from fedsynth.evaluation.networks.resnet import train_resnet
from fedsynth.evaluation.utility import CLASSIFIERS, DEFAULT_CLASSIFIERS, Scores, _scores, utility

# The package has a function of the module's name.
module = importlib.import_module("fedsynth.evaluation.utility")


@pytest.fixture(scope="module", autouse=True)
def short_training():
    """A third of the budgets is enough for these sets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CNN_STEPS", 100)
        patch.setattr(module, "MLP_STEPS", 300)
        yield


@pytest.fixture(scope="module")
def on_real(digits):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return utility(
            digits.train_images[:600], digits.train_labels[:600], digits.test_images, digits.test_labels, 10, seed=0
        )


def separable(labels: list[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 8, 8, 1) whose brightness is their label's, 0 to 2."""
    noise = np.random.default_rng(seed).integers(0, 40, (len(labels), 8, 8, 1))
    return (np.array(labels)[:, None, None, None] * 100 + noise).astype(np.uint8), np.array(labels)


def test_real_digits_teach_every_default_classifier_without_a_warning(on_real):
    assert tuple(on_real) == DEFAULT_CLASSIFIERS
    for scores in on_real.values():
        assert min(scores.accuracy, scores.macro_precision, scores.macro_recall, scores.macro_f1) > 0.93
        assert len(scores.per_class_recall) == len(scores.per_class_f1) == 10
        assert np.mean(scores.per_class_recall) == pytest.approx(scores.macro_recall)
        assert np.mean(scores.per_class_f1) == pytest.approx(scores.macro_f1)
    assert on_real["logistic-regression"].accuracy_interval is None
    assert on_real["mlp"].accuracy_interval > 0


def test_shuffled_labels_teach_nothing(digits, on_real):
    shuffled = np.random.default_rng(0).permutation(digits.train_labels[:600])
    scores = utility(
        digits.train_images[:600], shuffled, digits.test_images, digits.test_labels, 10, seed=0, num_seeds=1
    )
    for name in DEFAULT_CLASSIFIERS:
        assert scores[name].accuracy < 0.35
        assert scores[name].accuracy < on_real[name].accuracy


def test_scores_are_the_counts_of_every_seed_averaged():
    # Class 3 has no test image and is predicted once, class 2 is never predicted.
    truth = np.array([0, 0, 0, 1, 1, 2])
    first, second = np.array([0, 0, 1, 1, 1, 3]), np.array([0, 0, 0, 1, 0, 0])
    scores = _scores(truth, [first, second], num_classes=4)
    precision = np.array([[2 / 2, 2 / 3, 0, 0], [3 / 5, 1 / 1, 0, 0]])
    recall = np.array([[2 / 3, 2 / 2, 0, 0], [3 / 3, 1 / 2, 0, 0]])
    f1 = np.array([[4 / 5, 4 / 5, 0, 0], [6 / 8, 2 / 3, 0, 0]])
    assert scores.accuracy == pytest.approx((4 / 6 + 4 / 6) / 2)
    assert scores.accuracy_interval == 0
    assert scores.macro_precision == pytest.approx(precision.mean())
    assert scores.macro_recall == pytest.approx(recall.mean())
    assert scores.macro_f1 == pytest.approx(f1.mean())
    assert scores.per_class_recall == pytest.approx(recall.mean(axis=0))
    assert scores.per_class_f1 == pytest.approx(f1.mean(axis=0))


def test_separable_classes_are_learnt_and_a_missing_one_counts_as_error():
    test_set = separable([0, 0, 1, 1, 1, 2], seed=1)
    full = utility(*separable([0, 1, 2] * 6), *test_set, num_classes=3, seed=0, num_seeds=1)
    without = utility(*separable([0, 2] * 6), *test_set, num_classes=3, seed=0, num_seeds=1)
    for name in DEFAULT_CLASSIFIERS:
        assert full[name] == Scores(1.0, 1.0, 1.0, 1.0, None, (1.0,) * 3, (1.0,) * 3)
        assert without[name].accuracy == pytest.approx(3 / 6)
        assert without[name].per_class_recall == (1.0, 0.0, 1.0)
        assert without[name].macro_recall == pytest.approx(2 / 3)
        # The three images of class 1 are false positives of classes 0 and 2.
        assert without[name].macro_precision < 2 / 3


@pytest.mark.parametrize("count", [1, 20])
def test_a_single_class_is_always_predicted(digits, count):
    labels = np.full(count, 3)
    images = digits.train_images[:count]
    scores = utility(images, labels, digits.test_images, digits.test_labels, 10, seed=0, classifiers=CLASSIFIERS)
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


def test_the_interval_is_student_s_over_the_accuracies_of_the_seeds(digits, monkeypatch):
    images, labels = digits.test_images[:100], digits.test_labels[:100]
    answers = []

    def remember(truth, predictions, num_classes):
        answers.extend(predictions)
        return _scores(truth, predictions, num_classes)

    monkeypatch.setattr(module, "_scores", remember)
    train_set = digits.train_images[:40], digits.train_labels[:40]
    scores = utility(*train_set, images, labels, 10, seed=0, classifiers=["mlp"], num_seeds=4)["mlp"]
    accuracies = [(answer == labels).mean() for answer in answers]
    assert len(set(accuracies)) > 1
    low, high = stats.t.interval(0.95, 3, loc=np.mean(accuracies), scale=stats.sem(accuracies))
    assert scores.accuracy - scores.accuracy_interval == pytest.approx(low)
    assert scores.accuracy + scores.accuracy_interval == pytest.approx(high)


def test_equal_seeds_equal_scores_and_another_seed_another_mlp(digits):
    sets = (digits.train_images[:60], digits.train_labels[:60], digits.test_images, digits.test_labels)
    first, again = (utility(*sets, 10, seed=3, num_seeds=1) for _ in range(2))
    assert first == again
    other = utility(*sets, 10, seed=4, classifiers=["logistic-regression", "mlp"], num_seeds=1)
    assert other["mlp"] != first["mlp"]
    assert other["logistic-regression"] == first["logistic-regression"]


def test_the_resnet_learns_from_scratch(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(module, "RESNET_STEPS", 12)
    monkeypatch.setattr(module, "train_resnet", functools.partial(train_resnet, batch_size=9))
    sets = (*separable([0, 2] * 9), *separable([0, 0, 2, 2, 2], seed=1))
    assert utility(*sets, 3, 0, classifiers=["resnet"], num_seeds=1)["resnet"].accuracy == 1


def test_the_resnet_starts_from_the_file(monkeypatch, tmp_path):
    state = resnet18().state_dict()
    torch.save(state, tmp_path / "weights.pth")
    trained = []

    def two_steps(*arguments, **options):
        trained.append(train_resnet(*arguments, **{**options, "steps": 2, "batch_size": 2}))
        return trained[-1]

    monkeypatch.setattr(module, "train_resnet", two_steps)
    sets = (*separable([0, 1]), *separable([0, 1]))
    utility(*sets, 2, 0, classifiers=["resnet"], num_seeds=2, resnet_weights=tmp_path / "weights.pth")
    heads = {tuple(model.network.fc.bias.tolist()) for model in trained}
    assert len(heads) == 2
    for model in trained:
        torch.testing.assert_close(model.network.conv1.weight, state["conv1.weight"], rtol=0, atol=1e-3)


def test_a_wrong_file_is_reported_before_any_classifier_trains(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "train_domain_classifier", pytest.fail)
    sets = (*separable([0, 1]), *separable([0, 1]))
    with pytest.raises(UserError, match=r"resnet-weights-path = .*missing\.pth"):
        utility(*sets, 2, 0, classifiers=["cnn", "resnet"], resnet_weights=tmp_path / "missing.pth")


def test_a_file_is_of_no_concern_without_the_resnet():
    sets = (*separable([0, 1] * 3), *separable([0, 1]))
    utility(*sets, 2, 0, classifiers=["logistic-regression"], resnet_weights=Path("missing.pth"))


def test_rows_have_one_column_a_measure_and_the_interval_if_there_is_one():
    scores = Scores(0.5, 0.4, 0.3, 0.2, 0.1, (0.6, 0.0), (0.4, 0.0))
    row = {"accuracy-cnn": 0.5, "macro-precision-cnn": 0.4, "macro-recall-cnn": 0.3, "macro-f1-cnn": 0.2}
    assert scores.row("cnn") == {**row, "accuracy-cnn-interval": 0.1}
    without = Scores(0.5, 0.4, 0.3, 0.2, None, (0.6, 0.0), (0.4, 0.0))
    assert without.row("cnn") == row


def test_images_of_unequal_size_are_refused(digits):
    with pytest.raises(UserError, match=r"test images: images are \(9, 8, 1\)"):
        utility(digits.train_images, digits.train_labels, np.zeros((2, 9, 8, 1), np.uint8), np.zeros(2, int), 10, 0)


def test_unknown_classifiers_and_too_few_seeds_are_refused():
    sets = (*separable([0, 1]), *separable([0, 1]))
    with pytest.raises(UserError, match="unknown classifiers 'resent': did you mean 'resnet'"):
        utility(*sets, 2, 0, classifiers=["resent"])
    with pytest.raises(UserError, match="classifier-seeds = 0: at least 1"):
        utility(*sets, 2, 0, num_seeds=0)
