"""Sufficient statistics of features: a Fréchet distance to the images of many silos, none of which leaves its silo.

Sums over many images hide one of them, but they are no privacy guarantee: the sums of a single image are that image's
features, and two answers that differ by one image give it away. Refuse small n (:func:`checked`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedsynth.evaluation.array_checks import as_features
from fedsynth.evaluation.fidelity import frechet_distance_of_moments

Array = npt.NDArray[np.float64]

# Sums of float64 features stay this near to symmetric and positive semi-definite, relative to their trace.
ROUND_OFF = 1e-10
# Features are float32, and so is the shift: no honest difference of the two is larger.
LARGEST_DIFFERENCE = 2 * float(np.finfo(np.float32).max)


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """Count, sum and sum of products of features φ, all around one point s, the shift.

    ``Σφφᵀ`` of features far from the origin cancels against ``Σφ Σφᵀ / n``: with mean 1e3 and std 1 six of
    float64's sixteen digits are lost, and a square root of a covariance that should be singular halves the rest. Around
    a point near the mean nothing cancels (Chan, Golub & LeVeque 1983, "Algorithms for computing the sample variance").
    Silos do not know the common mean, so the server sends a shift with its question; the mean of its synthetic features
    is at hand and near enough. The arrays must travel as float64.

    Attributes:
        n: number of features.
        total: ``Σ(φ - s)``, float64 (D,).
        products: ``Σ(φ - s)(φ - s)ᵀ``, float64 (D, D).
        shift: s, float64 (D,).
    """

    n: int
    total: Array
    products: Array
    shift: Array

    @classmethod
    def of(cls, features: np.ndarray, shift: np.ndarray | None = None) -> FeatureStatistics:
        """Sum up features (N, D), N >= 2, around ``shift`` (D,), by default the origin.

        Raises:
            UserError: features are not as above, NaN or infinite.
            ValueError: ``shift`` has another shape than (D,) or is not finite.
        """
        checked_features = as_features("features", features)
        point = _shift(shift, checked_features.shape[1])
        differences = checked_features - point
        return cls(len(differences), differences.sum(axis=0), differences.T @ differences, point)

    @classmethod
    def merged(cls, parts: Sequence[FeatureStatistics]) -> FeatureStatistics:
        """Return the statistics of all features together; the order of the parts matters by round-off only.

        Raises:
            ValueError: no parts, or parts with different shifts.
        """
        if not parts:
            raise ValueError("there are no statistics to merge")
        shift = parts[0].shift
        if not all(np.array_equal(part.shift, shift) for part in parts):
            raise ValueError("statistics around different shifts cannot be added; send one shift to all silos")
        total = np.sum([part.total for part in parts], axis=0)
        products = sum((part.products for part in parts), start=np.zeros((len(shift), len(shift))))
        return cls(sum(part.n for part in parts), total, products, shift)

    @property
    def mean(self) -> Array:
        """Mean of the features themselves (D,), the shift added back."""
        mean: Array = self.shift + self.total / self.n
        return mean

    @property
    def covariance(self) -> Array:
        """Covariance (D, D) divided by n - 1, as in :func:`fedsynth.evaluation.frechet_distance`; n >= 2."""
        return _scatter(self.n, self.total, self.products) / (self.n - 1)


def frechet_distance_of_statistics(real: FeatureStatistics, synthetic: FeatureStatistics) -> float:
    """Squared Fréchet distance between Gaussians fitted to two feature sets (Heusel et al. 2017, arXiv 1706.08500).

    Equals :func:`fedsynth.evaluation.frechet_distance` of the features. The two shifts may differ.

    Returns:
        A float64 value >= 0.

    Raises:
        ValueError: unequal D.
    """
    if real.shift.shape != synthetic.shift.shape:
        raise ValueError(
            f"real features have {len(real.shift)} dimensions, synthetic features {len(synthetic.shift)}; "
            "extract both with one model"
        )
    return frechet_distance_of_moments(real.mean, real.covariance, synthetic.mean, synthetic.covariance)


def checked(
    n: int,
    total: np.ndarray,
    products: np.ndarray,
    dimension: int,
    min_samples: int,
    shift: np.ndarray | None = None,
) -> FeatureStatistics:
    """Accept what a silo answered if features exist that have such sums.

    What passes may still be invented: a silo that claims a large n moves the merged mean where it likes, so bound n.

    Args:
        n: number of features.
        total: ``Σ(φ - s)``.
        products: ``Σ(φ - s)(φ - s)ᵀ``.
        dimension: D.
        min_samples: smallest n to accept, at least 2.
        shift: s (D,) that was sent to the silo, by default the origin.

    Raises:
        ValueError: n is no integer or below ``min_samples``; an array is not float64 of shape (D,) or (D, D), not
            finite or larger than sums of float32 features can be; ``products`` is not symmetric; the covariance is not
            positive semi-definite up to round-off.
    """
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < max(min_samples, 2):
        raise ValueError(f"n = {n!r}: expected an integer of at least {max(min_samples, 2)}")
    n = int(n)
    _check_array("total", total, (dimension,), n * LARGEST_DIFFERENCE)
    _check_array("products", products, (dimension, dimension), n * LARGEST_DIFFERENCE**2)
    slack = ROUND_OFF * float(np.abs(np.diagonal(products)).sum())
    if np.abs(products - products.T).max() > slack:
        raise ValueError("products are not symmetric")
    smallest = float(np.linalg.eigvalsh(_scatter(n, total, products))[0])
    if smallest < -slack:
        raise ValueError(f"covariance is not positive semi-definite: smallest eigenvalue {smallest / (n - 1):.3g}")
    return FeatureStatistics(n, total, products, _shift(shift, dimension))


def _check_array(name: str, array: np.ndarray, shape: tuple[int, ...], largest: float) -> None:
    if array.dtype != np.float64 or array.shape != shape:
        raise ValueError(f"{name}: expected float64 {shape}, got {array.dtype} {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: {int((~np.isfinite(array)).sum())} of {array.size} values are NaN or infinite")
    if np.abs(array).max() > largest:
        raise ValueError(f"{name}: {np.abs(array).max():.3g} is more than float32 features can sum up to")


def _shift(shift: np.ndarray | None, dimension: int) -> Array:
    if shift is None:
        return np.zeros(dimension)
    if shift.shape != (dimension,) or not np.isfinite(shift).all():
        raise ValueError(f"shift: expected {dimension} finite values, got shape {shift.shape}")
    return shift.astype(np.float64)


def _scatter(n: int, total: Array, products: Array) -> Array:
    """``Σ(φ - mean)(φ - mean)ᵀ``."""
    mean = total / n
    scatter: Array = products - n * np.outer(mean, mean)
    return scatter
