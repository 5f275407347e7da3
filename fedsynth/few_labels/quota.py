"""How many images of each class every silo synthesises for itself."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import torch


def missing_quota(counts: torch.Tensor, multiplier: float = 1.0) -> torch.Tensor:
    """Return what the paper (arXiv 2501.02219) has a silo synthesise: classes that it has no labels of.

    With H_k the classes of silo k's labels, m_kj = round(μ q_k c_j) for j ∉ H_k and 0 otherwise, where c_j are all
    silos' labels of class j and q_k = n_k / Σ_{i ∈ H_k} c_i is the silo's share of the labels of its own classes.

    Args:
        counts: labelled images by silo and class, int64 (K, C), >= 0.
        multiplier: μ.

    Returns:
        int64 (K, C); a silo without labels gets nothing, nor does anybody of a class that nobody labels. The arithmetic
        is exact; halves are rounded up.
    """
    total = counts.sum(0).tolist()
    scale = Fraction(multiplier)
    quota = []
    for row in counts.tolist():
        of_own_classes = sum(c for mine, c in zip(row, total, strict=True) if mine)
        share = Fraction(sum(row), of_own_classes) if of_own_classes else Fraction(0)
        quota.append([0 if mine else _rounded(scale * share * c) for mine, c in zip(row, total, strict=True)])
    return torch.tensor(quota, dtype=torch.int64).view(counts.shape)


def gap_quota(counts: torch.Tensor, multiplier: float = 1.0) -> torch.Tensor:
    """Return what fills every class of a silo up to the shares of all silos' labels (our choice).

    The silo's best-served class sets the goal: N_k = max_{j ∈ H_k} c_kj n / c_j, n labels in all, and m_kj =
    max(0, round(μ N_k c_j / n) - c_kj). Arguments and result are those of :func:`missing_quota`.
    """
    total = counts.sum(0).tolist()
    everything = sum(total)
    scale = Fraction(multiplier)
    quota = []
    for row in counts.tolist():
        goals = [Fraction(mine * everything, c) for mine, c in zip(row, total, strict=True) if mine]
        goal = scale * max(goals, default=Fraction(0))
        wanted = [_rounded(goal * c / everything) if everything else 0 for c in total]
        quota.append([max(0, most - mine) for most, mine in zip(wanted, row, strict=True)])
    return torch.tensor(quota, dtype=torch.int64).view(counts.shape)


def deal(labels: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Deal images out to those who want images of their classes.

    Args:
        labels: class of every image, int64 (N,).
        wanted: images by taker and class, int64 (M, C); of no class fewer than there are images.

    Returns:
        Index of the taker of every image, int64 (N,). Of each class the first images go to the first taker, and so on:
        where there are too few, the last takers go short.
    """
    takers = torch.empty_like(labels)
    for label in range(wanted.shape[1]):
        rows = torch.nonzero(labels == label).squeeze(1)
        takers[rows] = torch.arange(len(wanted)).repeat_interleave(wanted[:, label])[: len(rows)]
    return takers


QUOTAS = {"missing": missing_quota, "gap": gap_quota}
"""Rules by name."""


def _rounded(value: Fraction) -> int:
    return floor(value + Fraction(1, 2))
