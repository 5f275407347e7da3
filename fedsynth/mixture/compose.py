"""One noise prediction out of many."""

from __future__ import annotations

import torch

SLICE = 32
"""Samples worked on at a time, to bound temporary memory."""


def compose(eps: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted noise prediction of the mixture, ε* = Σ_i w̃_i ε_i (Hahn & Lee 2025, Eq. 9 divided by its constant).

    A silo of weight zero never contributes, whatever stands in its place: a silo that was not asked about a
    sample may leave NaN there.

    Args:
        eps: noise predictions (K, N, C, H, W).
        weights: responsibilities (K, N), or (K, 1) for all samples alike, columns summing to 1.

    Returns:
        (N, C, H, W) in the dtype of ``eps``. Works in slices of samples, so that nothing of the size of ``eps`` is
        allocated.
    """
    composed = torch.empty_like(eps[0])
    shares = weights.to(eps.dtype).expand(-1, eps.shape[1])[..., None, None, None]
    for rows in torch.arange(eps.shape[1]).split(SLICE):
        first, last = int(rows[0]), int(rows[-1]) + 1
        share = shares[:, first:last]
        composed[first:last] = (eps[:, first:last] * share).masked_fill_(share == 0, 0.0).sum(0)
    return composed
