"""Prior weights of the silos in the mixture p* = Σ w_i p_i."""

from __future__ import annotations

import torch

from fedsynth.errors import UserError, unknown_choice

PRIORS = ("uniform", "size", "class")


def log_prior(kind: str, label_counts: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Log prior weight of every silo for every sample.

    ``uniform``: 1/K. ``size``: n_i / n. ``class``: n_{i,y} / n_y, the weights of a labelled mixture,
    p*(x|y) = Σ_i w_{i,y} p_i(x|y); a silo that holds no image of class y has weight 0 for it.

    Args:
        kind: one of :data:`PRIORS`.
        label_counts: images per silo and class (K, num_classes), non-negative.
        labels: class of every sample (N,).

    Returns:
        (K, N) float64, columns summing to 1 after ``exp``; ``-inf`` where the weight is 0.

    Raises:
        UserError: unknown ``kind``, or ``class`` for a label that no silo holds.
    """
    counts = label_counts.double()
    if kind == "uniform":
        weights = torch.ones_like(counts)
    elif kind == "size":
        weights = counts.sum(1, keepdim=True).expand_as(counts)
    elif kind == "class":
        weights = counts
    else:
        raise unknown_choice("prior", kind, PRIORS)
    chosen = weights[:, labels]
    orphans = sorted(set(labels[chosen.sum(0) == 0].tolist()))
    if orphans:
        raise UserError(f"prior '{kind}': no silo holds images of class index {orphans}; ask for other labels")
    return chosen.log() - chosen.sum(0).log()
