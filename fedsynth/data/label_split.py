"""Which images of simulated silos are labelled, where labels are few."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedsynth.data.apportion import apportion
from fedsynth.seeding import derive_seed

Indices = NDArray[np.int64]


def labelled_rows(labels: Indices, rows: Indices, fraction: float, seed: int, silo: int) -> Indices:
    """Return which ``rows`` of one silo are labelled, sorted: of every class ``fraction``, rounded, and one at least.

    Args:
        labels: class of every image (N,).
        rows: the silo's images, indices into ``labels``.
        fraction: 0 < fraction <= 1.
        seed: the run's.
        silo: its number.
    """
    rng = np.random.default_rng(derive_seed(seed, "labelled", silo))
    return _of_every_class(labels, rows, fraction, rng)


def spread_labelled(
    labels: Indices, parts: Sequence[Indices], fraction: float, alpha: float, seed: int
) -> tuple[list[Indices], list[Indices]]:
    """Spread the labelled images over the silos by a Dirichlet draw that knows nothing of where the others are.

    Of all silos' images, ``fraction`` of every class, rounded, and one at least, are the labelled pool; shares of every
    class of it over the silos are ~ Dir(alpha). A silo may get none.

    Args:
        labels: class of every image (N,).
        parts: images of every silo, indices into ``labels``; they keep those that are not in the pool.
        fraction: 0 < fraction <= 1.
        alpha: concentration, > 0.
        seed: the run's.

    Returns:
        All images of every silo, and those of them that are labelled, both sorted.
    """
    rng = np.random.default_rng(derive_seed(seed, "labelled-pool"))
    pool = _of_every_class(labels, np.sort(np.concatenate(list(parts))), fraction, rng)
    shares: list[list[Indices]] = [[] for _ in parts]
    for label in np.unique(labels[pool]):
        shuffled = rng.permutation(pool[labels[pool] == label])
        numbers = apportion(len(shuffled), rng.dirichlet(np.full(len(parts), alpha)))
        for share, piece in zip(shares, np.split(shuffled, np.cumsum(numbers)[:-1]), strict=True):
            share.append(piece)
    labelled = [np.sort(np.concatenate(share)) for share in shares]
    unlabelled = [np.setdiff1d(part, pool) for part in parts]
    return [np.union1d(*both) for both in zip(unlabelled, labelled, strict=True)], labelled


def _of_every_class(labels: Indices, rows: Indices, fraction: float, rng: np.random.Generator) -> Indices:
    chosen = [np.empty(0, np.int64)]
    for label in np.unique(labels[rows]):
        mine = rng.permutation(rows[labels[rows] == label])
        # The addition keeps 0.1 * 35 = 3.5000000000000004 and 3.5 together.
        chosen.append(mine[: max(1, int(fraction * len(mine) + 0.5 + 1e-9))])
    return np.sort(np.concatenate(chosen))
