"""What a silo measures of its held-out images with the server's classifier: four counts, no image and no feature."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from fedsynth.errors import UserError
from fedsynth.evaluation.manifold import inside_balls
from fedsynth.evaluation.networks.domain_classifier import DomainClassifier, predict_labels
from fedsynth.evaluation.networks.extractor import Extractor
from fedsynth.spec import ImageSpec

NEIGHBOURS = 5
"""A synthetic image's ball reaches to its 5th nearest other one."""
MIN_HELD_OUT = 5
"""Fewest held-out images to say anything about: a share of fewer says nearly which of them are meant."""


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


class Balls(NamedTuple):
    """The manifold of a synthetic set.

    Attributes:
        centres: its features (M, D).
        radii: (M,), as of :func:`fedsynth.evaluation.manifold.neighbour_radii`.
    """

    centres: np.ndarray
    radii: np.ndarray


@dataclass(frozen=True)
class HeldOutMeasures:
    """Held-out images by what the synthetic set makes of them: a histogram, each image in one cell of four.

    Another image in the place of one moves one image from one cell to another, so that the L1 sensitivity is 2,
    whatever classifier and balls the server has sent.

    Attributes:
        right_inside: put into their class by the classifier, and inside the synthetic set's manifold.
        right_outside: put into their class, but outside.
        wrong_inside: put into another class, but inside.
        wrong_outside: neither.
    """

    right_inside: int
    right_outside: int
    wrong_inside: int
    wrong_outside: int

    @property
    def n(self) -> int:
        """Held-out images."""
        return self.right_inside + self.right_outside + self.wrong_inside + self.wrong_outside

    @property
    def right(self) -> int:
        """Those that are classified correctly."""
        return self.right_inside + self.right_outside

    @property
    def inside(self) -> int:
        """Those inside the synthetic set's manifold."""
        return self.right_inside + self.wrong_inside

    @property
    def accuracy(self) -> float:
        """Share that is classified correctly, 0..1; n >= 1."""
        return self.right / self.n

    @property
    def recall(self) -> float:
        """Share inside the synthetic set's manifold, 0..1: recall of Kynkäänniemi et al. 2019; n >= 1."""
        return self.inside / self.n


def measure_held_out(
    classifier: DomainClassifier,
    extractor: Extractor,
    held_out: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.integer],
    manifold: Balls,
) -> HeldOutMeasures:
    """Measure the synthetic set on images that no model was trained on.

    Recall after Kynkäänniemi et al. 2019 (arXiv 1904.06991): an image counts if it lies in the ball of a synthetic one.
    Coverage (Naeem et al. 2020) is not among the measures, since one real image changes the balls of many.

    Args:
        classifier: trained on the synthetic set.
        extractor: whose features the balls are in.
        held_out: uint8 (N, H, W, C), N >= ``MIN_HELD_OUT`` images of the silo that no model was trained on.
        labels: their classes (N,).
        manifold: of the synthetic set.

    Raises:
        UserError: features that are not finite, or of another dimension than the balls.
    """
    right = predict_labels(classifier, held_out) == labels
    inside = inside_balls(extractor.extract(held_out).features, manifold.centres, manifold.radii)
    cells = [int(np.count_nonzero(a & b)) for a in (right, ~right) for b in (inside, ~inside)]
    return HeldOutMeasures(*cells)
