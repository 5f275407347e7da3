"""One noise prediction out of many."""

from __future__ import annotations

from collections.abc import Iterator

import torch

SLICE_NUMBERS = 2**16
"""Numbers of all silos' answers that are worked on at a time, to bound temporary memory."""


def row_slices(eps: torch.Tensor) -> Iterator[slice]:
    """Cut the samples of ``eps`` (K, N, C, H, W) into slices of about :data:`SLICE_NUMBERS` numbers."""
    width = max(1, SLICE_NUMBERS // max(1, eps[:, :1].numel()))
    return (slice(first, first + width) for first in range(0, eps.shape[1], width))


def compose(eps: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted noise prediction of the mixture, ε* = Σ_i w̃_i ε_i (Hahn & Lee 2025, Eq. 9 divided by its constant).

    A silo of weight zero never contributes, whatever stands in its place: a silo that was not asked about a
    sample may leave NaN there.

    Args:
        eps: noise predictions (K, N, C, H, W).
        weights: responsibilities (K, N), or (K, 1) for all samples alike, columns summing to 1.

    Returns:
        (N, C, H, W) in the dtype of ``eps``, summed silo after silo, so that the same answers give the same bits on
        every machine. Works in slices of samples, so that nothing of the size of ``eps`` is allocated.
    """
    composed = torch.zeros_like(eps[0])
    shares = weights.to(eps.dtype).expand(-1, eps.shape[1])[..., None, None, None]
    for rows in row_slices(eps):
        share = shares[:, rows]
        # Not sum(0): the order in which that adds depends on the CPU.
        for product in (eps[:, rows] * share).masked_fill_(share == 0, 0.0):
            composed[rows] += product
    return composed
