"""What a silo measures of its own real images, with a classifier of the synthetic set: sums and shares, no image."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.spatial.distance import cdist

from fedsynth.errors import UserError
from fedsynth.evaluation.array_checks import as_feature_pair
from fedsynth.evaluation.feature_statistics import FeatureStatistics
from fedsynth.evaluation.networks.domain_classifier import DomainClassifier, extract_features, predict_labels
from fedsynth.spec import ImageSpec

NEIGHBOURS = 5
MIN_HELD_OUT = 5
"""Fewest held-out images to say anything about: a share of fewer says nearly which of them are meant."""

_ROWS_PER_BLOCK = 256


def hash_weights(weights: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 (hex) of names, types, shapes and values of a state dict, in any order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        values = np.ascontiguousarray(tensor.detach().cpu().numpy())
        digest.update(json.dumps([name, str(values.dtype), values.shape]).encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def load_classifier(weights: Mapping[str, torch.Tensor], spec: ImageSpec, expected_hash: str) -> DomainClassifier:
    """Build the classifier that the server has trained.

    Args:
        weights: its state dict; the classifier shares the memory.
        spec: image format and classes of the run.
        expected_hash: :func:`hash_weights` on the server.

    Raises:
        UserError: other weights than the server has hashed, or weights of another network.
    """
    if hash_weights(weights) != expected_hash:
        raise UserError("weights-hash: the classifier is not the one that the server hashed: start the run again")
    # On the meta device nothing is initialised, and the global random state stays as it was.
    with torch.device("meta"):
        classifier = DomainClassifier(spec.channels, spec.size, len(spec.classes))
    try:
        classifier.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise UserError(f"the weights fit no classifier here: give server and silos one fedsynth ({error})") from error
    return classifier.eval()


def real_statistics(
    classifier: DomainClassifier, parts: Iterable[npt.NDArray[np.uint8]], shift: np.ndarray
) -> FeatureStatistics:
    """Sum up the features of all of a silo's images.

    Args:
        classifier: extracts the features.
        parts: uint8 (N_i, H, W, C), two images or more together; a part may be empty.
        shift: s (64,), the point to sum around.

    Raises:
        UserError: fewer than two images, or features that are not finite.
    """
    features = [extract_features(classifier, images) for images in parts if len(images)]
    return FeatureStatistics.of(np.concatenate(features), shift)


@dataclass(frozen=True)
class HeldOutMeasures:
    """What a silo says about its held-out images.

    Attributes:
        label_counts: held-out images of every class.
        label_correct: those of them that the classifier of the synthetic set puts into their class.
        coverage: see :func:`coverage`.
    """

    label_counts: tuple[int, ...]
    label_correct: tuple[int, ...]
    coverage: float

    @property
    def n(self) -> int:
        """Held-out images."""
        return sum(self.label_counts)

    @property
    def accuracy(self) -> float:
        """Share of them that is classified correctly, 0..1."""
        return sum(self.label_correct) / self.n

    def check(self, num_classes: int, n: int) -> None:
        """Refuse an answer that no images can give.

        Raises:
            ValueError: not ``num_classes`` classes; counts that are negative, do not sum up to ``n`` or are below the
                number of correct ones; a coverage outside 0..1.
        """
        counts, correct = self.label_counts, self.label_correct
        if not len(counts) == len(correct) == num_classes or self.n != n:
            raise ValueError(f"counts {counts} and {correct} do not fit {num_classes} classes and {n} images")
        if not all(0 <= right <= count for right, count in zip(correct, counts, strict=True)):
            raise ValueError(f"{correct} images classified correctly: must be 0 to {counts}")
        if not 0 <= self.coverage <= 1:
            raise ValueError(f"coverage = {self.coverage}: must be 0 to 1")


def measure_held_out(
    classifier: DomainClassifier,
    held_out: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.integer],
    train: npt.NDArray[np.uint8],
    synthetic_features: np.ndarray,
    num_classes: int,
) -> HeldOutMeasures:
    """Measure the synthetic set on images that no model was trained on.

    Args:
        classifier: trained on the synthetic set.
        held_out: uint8 (N, H, W, C), N >= ``MIN_HELD_OUT`` images of the silo that no model was trained on.
        labels: their classes (N,).
        train: uint8 (L, H, W, C), L >= 1, the silo's other images.
        synthetic_features: (M, 64), M >= 2, of the same classifier.
        num_classes: number of classes.

    Raises:
        UserError: too few images, or features that are not finite.
    """
    correct = labels[predict_labels(classifier, held_out) == labels]
    return HeldOutMeasures(
        label_counts=tuple(np.bincount(labels, minlength=num_classes).tolist()),
        label_correct=tuple(np.bincount(correct, minlength=num_classes).tolist()),
        coverage=coverage(
            extract_features(classifier, held_out), extract_features(classifier, train), synthetic_features
        ),
    )


def coverage(held_out: np.ndarray, train: np.ndarray, synthetic: np.ndarray, k: int = NEIGHBOURS) -> float:
    """Share of held-out samples with a synthetic one as near as their k-th nearest other real one, or nearer.

    Coverage of Naeem et al. 2020 (arXiv 2002.09797), but of the held-out samples alone, in balls drawn among all real
    ones. Among a dozen held-out samples balls are so wide that a set without half of the classes covers nearly all.
    With no training samples it is their coverage; that of
    :func:`fedsynth.evaluation.precision_recall_density_coverage` comes with neighbours among the synthetic samples,
    which cost M² distances. It rises with the number of synthetic and falls with that of real samples.

    Args:
        held_out: features (N, D), N >= 1.
        train: features (L, D) of the other real samples, N + L > k.
        synthetic: features (M, D), M >= 2.
        k: neighbour whose distance is the radius; a sample is not its own neighbour.

    Raises:
        UserError: unequal D, NaN or infinite features, or k not in 1..N + L - 1.
    """
    real, synthetic = as_feature_pair(np.concatenate([held_out, train]), synthetic)
    if not 1 <= k < len(real):
        raise UserError(f"k = {k}: allowed is 1 to {len(real) - 1} with {len(real)} real samples")
    covered = 0
    for start in range(0, len(held_out), _ROWS_PER_BLOCK):
        rows = real[start : min(start + _ROWS_PER_BLOCK, len(held_out))]
        # The nearest of all is the sample itself, at distance 0.
        radii = np.partition(cdist(rows, real), k, axis=1)[:, k]
        covered += int(np.count_nonzero(cdist(rows, synthetic).min(axis=1) <= radii))
    return covered / len(held_out)
