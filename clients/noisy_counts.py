"""Counts with differentially private noise, as a silo tells them to the server."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MIN_SCALES = 3
"""A noisy count below this many noise scales becomes 0: most such classes are not held by the silo, which would then be
asked about them."""

Counts = NDArray[np.int64]


def noisy_label_counts(counts: Counts, scale: float, rng: np.random.Generator) -> Counts:
    """Add noise to images per class, and tell classes that are lost in it as absent.

    Adding or removing one image changes one count by one: one release is (1/scale)-differentially private. Repeated
    draws would average out, so the noisy counts are kept: :mod:`clients.released`.

    Args:
        counts: images per class (num_classes,).
        scale: noise scale in images; 0: no noise.
        rng: of a simulated run, its seed's; at a real silo from the system's entropy, which the server cannot guess.

    Returns:
        (num_classes,), non-negative.
    """
    noisy = add_geometric_noise(counts, scale, rng)
    return np.where(noisy >= MIN_SCALES * scale, noisy, 0)


def add_geometric_noise(counts: Counts, scale: float, rng: np.random.Generator) -> Counts:
    """Add two-sided geometric noise, the discrete Laplace mechanism of Ghosh et al. 2012 (doi 10.1137/09076828X).

    Where one image changes the counts by k in sum, this is (k/scale)-differentially private.

    Args:
        counts: whole numbers (N,).
        scale: of the noise; 0: none.
        rng: where it is drawn from.
    """
    if scale == 0:
        return counts
    # The difference of two geometric variables with success probability 1 - exp(-1/scale).
    draws = rng.geometric(-np.expm1(-1 / scale), (2, len(counts)))
    noisy: Counts = counts + draws[0] - draws[1]
    return noisy
