"""Random subsets of silos: which few are asked about a sample."""

from __future__ import annotations

import math

import torch

BLOCK = 8
"""Samples of a class that share their experts: enough of them for answers to be judged together."""


def choose_experts(
    log_prior: torch.Tensor, labels: torch.Tensor, experts: int, generator: torch.Generator
) -> torch.Tensor:
    """Leave every block of :data:`BLOCK` samples of a class to a few silos, drawn by prior weight without replacement.

    A few experts still agree on what an image is, and average away less of what makes them differ than all do. With
    one expert a sample comes from one silo's model alone, as in pooled sampling.

    Args:
        log_prior: log prior weights of the silos (K, N); ``-inf`` excludes a silo.
        labels: class of every sample (N,).
        experts: silos a sample, at least 1; where fewer hold the class, all of them.
        generator: draws the silos.

    Returns:
        (K, N): equal weights of a sample's experts, ``-inf`` for the other silos; columns that nobody may answer stay
        ``-inf``. With one expert its chance is its prior weight, so that the mixture is the one of ``log_prior``.
    """
    chosen = torch.full_like(log_prior, -torch.inf)
    for label in torch.unique(labels).tolist():
        for rows in torch.nonzero(labels == label).squeeze(1).split(BLOCK):
            weights = log_prior[:, rows[0]].double().exp()
            held = int((weights > 0).sum())
            if held:
                count = min(experts, held)
                silos = torch.multinomial(weights, count, generator=generator)
                chosen[silos[:, None], rows] = -math.log(count)
    return chosen
