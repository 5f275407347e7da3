"""Which predictions of a classifier become pseudo-labels: by what all silos' confusion matrices say of them.

The paper (arXiv 2501.02219) sums plain confusion matrices; the bins of confidence, and the rule, are our choice.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

CONFIDENCE = 0.95
"""Least confidence of a pseudo-label where the silos' matrices are not asked, as in FixMatch (arXiv 2001.07685)."""
NEVER = 2.0
"""Threshold that no confidence reaches."""


class Thresholds(NamedTuple):
    """What a prediction needs to become a pseudo-label.

    Attributes:
        confidence: least confidence of a prediction of each class, float64 (C,).
        reached: whether predictions above it are as precise as was asked, bool (C,).
    """

    confidence: torch.Tensor
    reached: torch.Tensor


def bin_edges(bins: int) -> torch.Tensor:
    """Return the least confidence of every bin, float64 (bins,): 0, 1/bins, ..."""
    return torch.arange(bins, dtype=torch.float64) / bins


def confusion(probabilities: torch.Tensor, labels: torch.Tensor, bins: int) -> torch.Tensor:
    """Count images by class, predicted class and bin of the confidence max p: M[y, ŷ, b].

    Args:
        probabilities: of every class (N, C).
        labels: int64 (N,).
        bins: B, bins of equal width from 0 to 1.

    Returns:
        int64 (C, C, B); sums to N.
    """
    classes = probabilities.shape[1]
    confidence, predicted = probabilities.double().max(1)
    of_bin = torch.bucketize(confidence, bin_edges(bins)[1:], right=True)
    cells = (labels * classes + predicted) * bins + of_bin
    return torch.bincount(cells, minlength=classes * classes * bins).view(classes, classes, bins)


def precision_thresholds(matrix: torch.Tensor, precision: float) -> Thresholds:
    """Return for every class the least confidence from which its predictions are precise.

    P_j(τ) = (Σ_{b≥τ} M[j, j, b] + 1/C) / (Σ_{b≥τ} Σ_i M[i, j, b] + 1) is the precision of the predictions of class j
    from bin τ on, drawn towards chance where there are few. The threshold is the smallest τ with P_j(τ) ≥
    ``precision``; where none has it, the smallest τ of the highest P_j, and where no prediction of the class was
    counted, so that nothing speaks for any, the last bin's.

    Args:
        matrix: the silos' confusion matrices, added up, int64 (C, C, B); with noise counts can be negative.
        precision: 0 to 1.
    """
    classes, _, bins = matrix.shape
    tails = matrix.flip(2).cumsum(2).flip(2)
    correct = tails.diagonal(dim1=0, dim2=1).T.clamp(min=0).double()
    predicted = torch.maximum(tails.sum(0).double(), correct)
    found = (correct + 1 / classes) / (predicted + 1)
    reached = found >= precision
    tau = torch.where(reached.any(1), reached.int().argmax(1), found.argmax(1))
    tau[~reached.any(1) & (predicted[:, 0] == 0)] = bins - 1
    return Thresholds(bin_edges(bins)[tau], reached.any(1))


def select(probabilities: torch.Tensor, thresholds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which images (n,) become pseudo-labelled, int64 and ascending, and the predicted class of every image.

    Args:
        probabilities: of every class (N, C).
        thresholds: least confidence by predicted class, float64 (C,).

    Returns:
        Rows (n,) and predictions (N,).
    """
    confidence, predicted = probabilities.double().max(1)
    return torch.nonzero(confidence >= thresholds[predicted]).squeeze(1), predicted
