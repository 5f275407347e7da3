"""Moments of features with differentially private noise, as a silo tells them to the server."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from scipy.optimize import brentq
from scipy.special import log_ndtr

from fedsynth.evaluation.feature_statistics import FeatureStatistics

SENSITIVITY = math.sqrt(3)
"""L2 sensitivity of (1, φ, φφᵀ) summed over images, with ‖φ‖ <= 1, to one image more or less: each of the three parts
changes by 1 at most. Of φφᵀ the diagonal counts, and the upper triangle times √2, which has the norm of the whole."""


def gaussian_scale(epsilon: float, delta: float, sensitivity: float) -> float:
    """Return the standard deviation of Gaussian noise that gives (ε, δ)-differential privacy.

    The analytic Gaussian mechanism of Balle & Wang 2018 (arXiv 1805.06530), theorem 8: the smallest that does.

    Args:
        epsilon: ε > 0.
        delta: δ, 0 < δ < 1.
        sensitivity: L2 sensitivity of what the noise is added to.
    """

    def excess(log_scale: float) -> float:
        ratio = sensitivity * math.exp(-log_scale)
        near, far = ratio / 2 - epsilon / ratio, -ratio / 2 - epsilon / ratio
        return math.exp(log_ndtr(near)) - math.exp(epsilon + log_ndtr(far)) - delta

    low, high = -40.0, 40.0
    # A root finder's answer may lie on either side of the root: the larger one is private.
    return math.exp(brentq(excess, low, high, xtol=1e-12)) * (1 + 1e-9)


def add_gaussian_noise(
    moments: FeatureStatistics, epsilon: float, delta: float, rng: np.random.Generator
) -> FeatureStatistics:
    """Return moments with noise on the number of images, on the sum of features and on that of their products.

    The three sums are one release, (ε, δ)-differentially private as to one image more or less. The noisy number is used
    to divide by; the statistics keep their ``n``, which the silo must not tell.

    Args:
        moments: without noise.
        epsilon: ε > 0.
        delta: δ.
        rng: where the noise is drawn from.
    """
    scale = gaussian_scale(epsilon, delta, SENSITIVITY)
    dimension = len(moments.mean)
    count = max(moments.n + scale * rng.standard_normal(), 1.0)
    total = moments.n * moments.mean + scale * rng.standard_normal(dimension)
    drawn = np.triu(rng.standard_normal((dimension, dimension)))
    # Off the diagonal, the upper triangle times √2 gets the noise, and is divided again.
    symmetric = np.diag(np.diag(drawn)) + (np.triu(drawn, 1) + np.triu(drawn, 1).T) / math.sqrt(2)
    products = moments.n * moments.products + scale * symmetric
    return replace(moments, mean=total / count, products=products / count, noise=scale / count)
