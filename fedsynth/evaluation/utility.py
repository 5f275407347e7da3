"""Train on one set of images, test on real ones: what a classifier can learn from a synthetic dataset."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.base import ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, precision_recall_fscore_support
from sklearn.neural_network import MLPClassifier

from fedsynth.errors import UserError, unknown_choice
from fedsynth.evaluation.array_checks import check_labelled_images, check_same_image_shape
from fedsynth.evaluation.intervals import mean_and_interval
from fedsynth.evaluation.networks.domain_classifier import (
    ARCHITECTURE,
    predict_labels,
    scale_pixels,
    train_domain_classifier,
)
from fedsynth.evaluation.networks.resnet import RESNET_STEPS, Weights, load_weights, predict_resnet_labels, train_resnet
from fedsynth.seeding import derive_seed
from fedsynth.threads import side_by_side

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.integer]

LOGISTIC_REGRESSION, MLP, CNN, RESNET = "logistic-regression", "mlp", "cnn", "resnet"
CLASSIFIERS = (LOGISTIC_REGRESSION, MLP, CNN, RESNET)
# A ResNet-18 takes minutes on a CPU.
DEFAULT_CLASSIFIERS = (LOGISTIC_REGRESSION, MLP, CNN)
CNN_STEPS = 300
MLP_STEPS = 1000
MLP_BATCH_SIZE = 200
LOGISTIC_REGRESSION_ITERATIONS = 200


@dataclass(frozen=True)
class Scores:
    """How well one classifier, trained on one set with several seeds, knows the test images; means over the seeds.

    A ratio without a denominator, such as the precision of a class that is never predicted, is 0. Macro averages are
    over all classes, those without test images too.

    Attributes:
        accuracy: share of the test images that are classified correctly, 0..1.
        macro_precision, macro_recall, macro_f1: unweighted means over the classes, 0..1.
        accuracy_interval: half width of the 95 % interval of the accuracy over the seeds (Student's t); None for a
            single seed or where the seed changes nothing. It leaves out what another training or test set would change.
        per_class_recall: recall of each class (num_classes,).
        per_class_f1: F1 of each class (num_classes,).
    """

    accuracy: float
    macro_precision: float
    macro_recall: float
    macro_f1: float
    accuracy_interval: float | None
    per_class_recall: tuple[float, ...]
    per_class_f1: tuple[float, ...]

    def row(self, classifier: str) -> dict[str, float]:
        """Return columns ``<measure>-<classifier>``; that of the interval is absent when there is none."""
        interval = {} if self.accuracy_interval is None else {f"accuracy-{classifier}-interval": self.accuracy_interval}
        return {
            f"accuracy-{classifier}": self.accuracy,
            **interval,
            f"macro-precision-{classifier}": self.macro_precision,
            f"macro-recall-{classifier}": self.macro_recall,
            f"macro-f1-{classifier}": self.macro_f1,
        }


def utility_scores(
    train_images: Images,
    train_labels: Labels,
    test_images: Images,
    test_labels: Labels,
    num_classes: int,
    seed: int,
    classifiers: Sequence[str] = DEFAULT_CLASSIFIERS,
    num_seeds: int = 3,
    resnet_weights: Path | None = None,
    device: str = "cpu",
) -> dict[str, Scores]:
    """Train each of ``classifiers`` with a fixed budget, once per seed, and test it on ``test_images``.

    A class without training images is not learnt, so its test images count as errors; with a single class every
    prediction is that class. What no seed changes, that and logistic regression, is done once. The trainings run side
    by side, each on one thread (those of a ResNet one after another, on all), and give what they give on a single core.

    Args:
        train_images: uint8 (N, H, W, C), usually synthetic.
        train_labels: integers (N,) from 0 to ``num_classes - 1``; classes may be missing.
        test_images: uint8 (M, H, W, C), real and unseen by whatever made the training images.
        test_labels: integers (M,).
        num_classes: number of classes.
        seed: fixes initial weights and batches.
        classifiers: names from :data:`CLASSIFIERS`.
        num_seeds: trainings of each classifier, at least 1.
        resnet_weights: as for :func:`fedsynth.evaluation.networks.resnet.load_weights`; of use to ``resnet`` only.
        device: where ``resnet`` trains; the others are as fast on the CPU.

    Returns:
        The scores of each classifier, in the order of ``classifiers``.

    Raises:
        UserError: images or labels are not as above, or differ in size; a classifier is unknown, ``num_seeds`` is below
            1, or weights cannot be used.
    """
    check_labelled_images("training images", train_images, train_labels, num_classes)
    check_labelled_images("test images", test_images, test_labels, num_classes)
    check_same_image_shape("test images", test_images, train_images.shape[1:])
    _check_choices(classifiers, num_seeds)
    # Read before the other classifiers train: a wrong file is reported at once.
    weights = load_weights(resnet_weights) if RESNET in classifiers else None
    trial = _Trial(train_images, train_labels, test_images, num_classes, weights, device)
    trainings = [
        (name, derive_seed(seed, "utility", name, repetition))
        for name in classifiers
        for repetition in range(trial.repeats(name, num_seeds))
    ]
    with warnings.catch_warnings():
        # The budget is fixed on purpose: stopping before convergence is part of the measure.
        warnings.simplefilter("ignore", ConvergenceWarning)
        # A ResNet has work enough for all threads, or a GPU.
        small, large = ([each for each in trainings if (each[0] == RESNET) is of_resnet] for of_resnet in (False, True))
        predicted = dict(zip(small, side_by_side(trial.predictions, small), strict=True))
        predicted |= {training: trial.predictions(training) for training in large}
    return {
        name: _scores(test_labels, [labels for (of, _), labels in predicted.items() if of == name], num_classes)
        for name in classifiers
    }


def budgets() -> tuple[int, ...]:
    """Return what a score depends on besides the arguments of :func:`utility_scores`."""
    return ARCHITECTURE, CNN_STEPS, MLP_STEPS, MLP_BATCH_SIZE, LOGISTIC_REGRESSION_ITERATIONS, RESNET_STEPS


def _check_choices(classifiers: Sequence[str], num_seeds: int) -> None:
    for name in classifiers:
        if name not in CLASSIFIERS:
            raise unknown_choice("classifiers", name, CLASSIFIERS)
    if num_seeds < 1:
        raise UserError(f"classifier-seeds = {num_seeds}: at least 1 is needed; 2 or more give an interval")


def _scores(test_labels: Labels, predictions: Sequence[Labels], num_classes: int) -> Scores:
    accuracy, interval = mean_and_interval([float(accuracy_score(test_labels, labels)) for labels in predictions])
    # (seeds, 3, classes) without the column of supports.
    of_classes = [
        precision_recall_fscore_support(test_labels, labels, labels=range(num_classes), zero_division=0)[:3]
        for labels in predictions
    ]
    precision, recall, f1 = np.mean(of_classes, axis=0)
    return Scores(
        accuracy=accuracy,
        macro_precision=float(precision.mean()),
        macro_recall=float(recall.mean()),
        macro_f1=float(f1.mean()),
        accuracy_interval=interval,
        per_class_recall=tuple(recall.tolist()),
        per_class_f1=tuple(f1.tolist()),
    )


@dataclass(frozen=True)
class _Trial:
    train_images: Images
    train_labels: Labels
    test_images: Images
    num_classes: int
    resnet_weights: Weights | None
    device: str

    def repeats(self, name: str, num_seeds: int) -> int:
        return 1 if name == LOGISTIC_REGRESSION or self._single_class else num_seeds

    @property
    def _single_class(self) -> bool:
        return len(np.unique(self.train_labels)) == 1

    def predictions(self, training: tuple[str, int]) -> Labels:
        """Train one classifier, by name and seed, and return the labels (M,) it gives to the test images."""
        name, seed = training
        if self._single_class:
            return np.full(len(self.test_images), self.train_labels[0])
        data = self.train_images, self.train_labels
        if name == CNN:
            model = train_domain_classifier(*data, self.num_classes, seed, steps=CNN_STEPS)
            return predict_labels(model, self.test_images)
        if name == RESNET:
            weights = self.resnet_weights
            resnet = train_resnet(
                *data, self.num_classes, seed, weights=weights, device=self.device, steps=RESNET_STEPS
            )
            return predict_resnet_labels(resnet, self.test_images)
        classifier = _pixel_classifier(name, seed, len(self.train_images))
        classifier.fit(_pixels(self.train_images), self.train_labels)
        return np.asarray(classifier.predict(_pixels(self.test_images)))


def _pixel_classifier(name: str, seed: int, count: int) -> ClassifierMixin:
    if name == LOGISTIC_REGRESSION:
        return LogisticRegression(max_iter=LOGISTIC_REGRESSION_ITERATIONS)
    batch_size = min(MLP_BATCH_SIZE, count)
    epochs = math.ceil(MLP_STEPS / math.ceil(count / batch_size))
    # scikit-learn takes 32-bit seeds only.
    return MLPClassifier((128,), batch_size=batch_size, max_iter=epochs, random_state=seed % 2**32)


def _pixels(images: Images) -> npt.NDArray[np.float32]:
    return scale_pixels(images).reshape(len(images), -1)
