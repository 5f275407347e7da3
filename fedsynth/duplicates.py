"""The same picture more than once: in a data set, under two classes, in two folds or at two silos."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def digests(images: NDArray[np.uint8], rows: NDArray[np.int64] | None = None) -> list[bytes]:
    """Return a digest (BLAKE2b, 16 bytes) of each image of uint8 (N, H, W, C): equal pixels, equal digests.

    Args:
        images: read one by one: they may lie on disk.
        rows: which of them, in this order; None: all.
    """
    chosen = range(len(images)) if rows is None else rows
    return [hashlib.blake2b(images[row].tobytes(), digest_size=16).digest() for row in chosen]


def count_shared(images: NDArray[np.uint8], others: NDArray[np.uint8]) -> int:
    """Return how many of ``images`` are among ``others`` too, pixel for pixel; both uint8 (N, H, W, C)."""
    known = set(digests(others))
    return sum(digest in known for digest in digests(images))


def repeats(found: Sequence[bytes]) -> list[tuple[int, int]]:
    """Return position and first position of every digest that was there before."""
    first: dict[bytes, int] = {}
    return [(k, first[digest]) for k, digest in enumerate(found) if first.setdefault(digest, k) != k]


def conflicts(found: Sequence[bytes], groups: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Return positions of equal digests in two groups, one pair per digest that is in more than one.

    Args:
        found: digests (N,).
        groups: class or silo of each, (N,).
    """
    first: dict[bytes, int] = {}
    pairs: dict[bytes, tuple[int, int]] = {}
    for k, digest in enumerate(found):
        if groups[first.setdefault(digest, k)] != groups[k]:
            pairs.setdefault(digest, (first[digest], k))
    return list(pairs.values())
