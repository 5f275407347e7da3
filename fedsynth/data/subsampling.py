"""Thinning a partition out without losing a client or a class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedsynth.data.apportion import apportion
from fedsynth.errors import UserError

Indices = NDArray[np.int64]


def thin_out(
    labels: Indices, parts: Sequence[Indices], counts: Indices, total: int, rng: np.random.Generator
) -> list[Indices]:
    """Keep ``total`` random samples, with the shares of clients and classes as they were.

    Every client keeps a sample and every class an owner. A client can lose a class of which it had very few samples:
    lifting all of those to one would even out a skewed partition.

    Args:
        labels: (N,) non-negative class labels.
        parts: index arrays into ``labels``, one per client, none empty.
        counts: (K, C) samples of every client and class in ``parts``.
        total: samples to keep, at most as many as there are.
        rng: decides which samples stay.

    Raises:
        UserError: ``total`` is too small for that.
    """
    kept = _thinned_counts(counts, total)
    return [
        np.concatenate([rng.permutation(part[labels[part] == label])[:number] for label, number in enumerate(row)])
        for part, row in zip(parts, kept, strict=True)
    ]


def _thinned_counts(counts: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    needed = _needed_cells(counts)
    if needed.sum() > total:
        raise UserError(
            f"samples-per-client = {total // len(counts)} is too small for a sample of every class and client: "
            f"raise it to {-(-int(needed.sum()) // len(counts))} or more, or set 0 for all samples"
        )
    kept = np.maximum(apportion(total, counts), needed)
    for _ in range(int(kept.sum()) - total):
        kept.flat[np.argmax(kept - needed)] -= 1
    return kept


def _needed_cells(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Mark the (client, class) cells that keep a sample: the largest of every class and of every client."""
    needed = np.zeros_like(counts)
    needed[counts.argmax(axis=0), np.arange(counts.shape[1])] = 1
    needed[np.arange(len(counts)), counts.argmax(axis=1)] = 1
    return np.minimum(needed, counts)
