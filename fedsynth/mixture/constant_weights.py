"""Constant weights of a mixture with the same bits on every CPU: divisions, products and sums, no logarithm."""

from __future__ import annotations

import torch

from fedsynth.mixture.prior import PRIORS
from fedsynth.mixture.screening import bound_weights


def asked_rows(prior: str, counts: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return about which samples a silo is asked: with prior ``class`` those of classes that it holds.

    Args:
        prior: one of :data:`~fedsynth.mixture.prior.PRIORS`.
        counts: its images by class, int64 (Y,).
        labels: class of every sample, int64 (N,), below Y.

    Returns:
        bool (N,).
    """
    assert prior in PRIORS
    if prior == "class":
        return counts[labels] > 0
    holds = prior == "uniform" or int(counts.sum()) > 0
    return torch.full(labels.shape, holds)


def constant_weights(prior: str, counts: torch.Tensor, labels: torch.Tensor, max_weight: float) -> torch.Tensor:
    """Return the weights of the silos that answered: their shares in the prior, bounded.

    Where all silos answer, they are those that a run composes with whose weights are ``constant``.

    Args:
        prior: one of :data:`~fedsynth.mixture.prior.PRIORS`.
        counts: images by silo and class of those that answered, int64 (K, Y).
        labels: class of every sample, int64 (N,), each held by one of them at least.
        max_weight: bound of a silo's weight in a class that others hold too.

    Returns:
        float32 (K, N).
    """
    rows = torch.stack([asked_rows(prior, own, torch.arange(counts.shape[1])) for own in counts]).double()
    weights = rows if prior == "uniform" else rows * (counts if prior == "class" else counts.sum(1, keepdim=True))
    table = torch.zeros_like(weights)
    present = labels.unique()
    # Whole numbers: their sum is the same in any order.
    table[:, present] = bound_weights(weights[:, present] / weights[:, present].sum(0), max_weight)
    return table.float()[:, labels]
