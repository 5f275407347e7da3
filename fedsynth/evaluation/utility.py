"""Train on one set of images, test on real ones: what a classifier can learn from a synthetic dataset."""

from __future__ import annotations

import math
import warnings

import numpy as np
import numpy.typing as npt
from sklearn.base import ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.neural_network import MLPClassifier

from fedsynth.evaluation.checks import check_labelled_images, check_same_image_shape
from fedsynth.evaluation.features import predict_labels, scale_pixels, train_domain_classifier
from fedsynth.seeding import derive_seed

CLASSIFIERS = ("logistic-regression", "mlp", "cnn")
CNN_STEPS = 300
MLP_STEPS = 1000
MLP_BATCH_SIZE = 200
LOGISTIC_REGRESSION_ITERATIONS = 200


def utility(
    train_images: npt.NDArray[np.uint8],
    train_labels: npt.NDArray[np.integer],
    test_images: npt.NDArray[np.uint8],
    test_labels: npt.NDArray[np.integer],
    num_classes: int,
    seed: int,
) -> dict[str, float]:
    """Train each of :data:`CLASSIFIERS` with a fixed budget and test it on ``test_images``.

    A class without training images is not learnt, so its test images count as errors; with a single class every
    prediction is that class.

    Args:
        train_images: uint8 (N, H, W, C), usually synthetic.
        train_labels: integers (N,) from 0 to ``num_classes - 1``; classes may be missing.
        test_images: uint8 (M, H, W, C), real and unseen by whatever made the training images.
        test_labels: integers (M,).
        num_classes: number of classes.
        seed: fixes initial weights and batches.

    Returns:
        ``accuracy-<classifier>`` and ``macro-f1-<classifier>`` in 0..1 (F1: mean over all ``num_classes``).

    Raises:
        UserError: images or labels are not as above, or differ in size.
    """
    check_labelled_images("training images", train_images, train_labels, num_classes)
    check_labelled_images("test images", test_images, test_labels, num_classes)
    check_same_image_shape("test images", test_images, train_images.shape[1:])
    scores: dict[str, float] = {}
    for name in CLASSIFIERS:
        classifier_seed = derive_seed(seed, "utility", name)
        predicted = _predictions(name, train_images, train_labels, test_images, num_classes, classifier_seed)
        scores[f"accuracy-{name}"] = float(accuracy_score(test_labels, predicted))
        scores[f"macro-f1-{name}"] = float(
            f1_score(test_labels, predicted, labels=range(num_classes), average="macro", zero_division=0)
        )
    return scores


def _predictions(
    name: str,
    train_images: npt.NDArray[np.uint8],
    train_labels: npt.NDArray[np.integer],
    test_images: npt.NDArray[np.uint8],
    num_classes: int,
    seed: int,
) -> np.ndarray:
    if len(np.unique(train_labels)) == 1:
        return np.full(len(test_images), train_labels[0])
    if name == "cnn":
        model = train_domain_classifier(train_images, train_labels, num_classes, seed, steps=CNN_STEPS)
        return predict_labels(model, test_images)
    classifier = _pixel_classifier(name, seed, len(train_images))
    with warnings.catch_warnings():
        # The budget is fixed on purpose: stopping before convergence is part of the measure.
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier.fit(_pixels(train_images), train_labels)
    return np.asarray(classifier.predict(_pixels(test_images)))


def _pixel_classifier(name: str, seed: int, count: int) -> ClassifierMixin:
    if name == "logistic-regression":
        return LogisticRegression(max_iter=LOGISTIC_REGRESSION_ITERATIONS)
    batch_size = min(MLP_BATCH_SIZE, count)
    epochs = math.ceil(MLP_STEPS / math.ceil(count / batch_size))
    # scikit-learn takes 32-bit seeds only.
    return MLPClassifier((128,), batch_size=batch_size, max_iter=epochs, random_state=seed % 2**32)


def _pixels(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    return scale_pixels(images).reshape(len(images), -1)
