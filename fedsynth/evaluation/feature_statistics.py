"""Moments of features: a Fréchet distance to the images of many silos, none of which leaves its silo.

Means over many images hide one of them, but by themselves they are no privacy guarantee: two answers that differ by one
image give that image's features away. A silo refuses few images, tells a data set's moments once, and may add noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedsynth.evaluation.array_checks import as_features
from fedsynth.evaluation.fidelity import frechet_distance_of_moments

Array = npt.NDArray[np.float64]

ROUND_OFF = 1e-10
"""Means of float64 features of norm 1 stay this near to symmetric and positive semi-definite."""
NOISE_TAIL = 8.0
"""No honest Gaussian draw is that many standard deviations off."""


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """Mean and mean of products of features φ of L2 norm 1 at most.

    Features of that length are not far from the origin compared with their deviation, and in float64 the difference
    ``E φφᵀ - E φ E φᵀ`` keeps at least ten digits: no shift is needed. The arrays must travel as float64.

    Attributes:
        n: images, which weigh the parts of several silos; need not be the number that the moments were divided by.
        mean: ``E φ``, float64 (D,).
        products: ``E φφᵀ``, float64 (D, D).
        noise: standard deviation of Gaussian noise in each entry of ``mean`` and of the diagonal of ``products``; that
            of the entries beside it is smaller by √2. 0: none.
    """

    n: int
    mean: Array
    products: Array
    noise: float = 0.0

    @classmethod
    def of(cls, features: np.ndarray) -> FeatureStatistics:
        """Average features (N, D), N >= 2, each clipped to L2 norm 1.

        Raises:
            UserError: features are not as above, NaN or infinite.
        """
        clipped = clip(as_features("features", features))
        n = len(clipped)
        return cls(n, clipped.sum(axis=0) / n, clipped.T @ clipped / n)

    @classmethod
    def merged(cls, parts: Sequence[FeatureStatistics]) -> FeatureStatistics:
        """Return the statistics of all features together; the order of the parts matters by round-off only.

        Raises:
            ValueError: no parts, or parts of different D.
        """
        if not parts:
            raise ValueError("there are no statistics to merge")
        if len({part.mean.shape for part in parts}) > 1:
            raise ValueError("statistics of different features cannot be merged; use one network")
        n = sum(part.n for part in parts)
        shares = [part.n / n for part in parts]
        mean = np.sum([share * part.mean for share, part in zip(shares, parts, strict=True)], axis=0)
        products = np.sum([share * part.products for share, part in zip(shares, parts, strict=True)], axis=0)
        noise = float(np.sqrt(sum((share * part.noise) ** 2 for share, part in zip(shares, parts, strict=True))))
        return cls(n, mean, products, noise)

    @property
    def covariance(self) -> Array:
        """Covariance (D, D) divided by n - 1, as in :func:`fedsynth.evaluation.frechet_distance`; n >= 2.

        With noise in it, it may have negative eigenvalues.
        """
        scatter: Array = self.products - np.outer(self.mean, self.mean)
        return scatter * (self.n / (self.n - 1))


def clip(features: Array) -> Array:
    """Shorten those of features (N, D) whose L2 norm is above 1 to that: what one image can add to a sum is bounded."""
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    clipped: Array = features / np.maximum(norms, 1.0)
    return clipped


def frechet_distance_of_statistics(real: FeatureStatistics, synthetic: FeatureStatistics) -> float:
    """Squared Fréchet distance between Gaussians fitted to two feature sets (Heusel et al. 2017, arXiv 1706.08500).

    Equals :func:`fedsynth.evaluation.frechet_distance` of the clipped features where there is no noise. Of a noisy
    covariance the nearest positive semi-definite matrix counts (negative eigenvalues become zero); what noise is left
    makes the distance larger.

    Returns:
        A float64 value >= 0.

    Raises:
        ValueError: unequal D.
    """
    if real.mean.shape != synthetic.mean.shape:
        raise ValueError(
            f"real features have {len(real.mean)} dimensions, synthetic features {len(synthetic.mean)}; "
            "extract both with one model"
        )
    return frechet_distance_of_moments(real.mean, real.covariance, synthetic.mean, synthetic.covariance)


def checked(n: int, mean: np.ndarray, products: np.ndarray, dimension: int, noise: float = 0.0) -> FeatureStatistics:
    """Accept what a silo answered if features of L2 norm 1 at most exist that have such moments, up to its noise.

    What passes may still be invented: a silo that claims a large n moves the merged mean where it likes, so bound n.

    Args:
        n: number of images.
        mean: ``E φ``.
        products: ``E φφᵀ``.
        dimension: D.
        noise: standard deviation of the noise that the silo says it has added.

    Raises:
        ValueError: n is no integer or below 2; ``noise`` is not 0 to 1; an array is not float64 of shape (D,) or
            (D, D), not finite or larger than such moments can be; ``products`` is not symmetric or has too large a
            trace; the covariance is not positive semi-definite up to round-off and noise.
    """
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 2:
        raise ValueError(f"n = {n!r}: expected an integer of at least 2")
    if not 0 <= noise <= 1:
        raise ValueError(f"noise = {noise}: must be 0 to 1, the largest moment that there can be")
    answer = FeatureStatistics(int(n), mean, products, noise)
    _check_array("mean", mean, (dimension,), noise)
    _check_array("products", products, (dimension, dimension), noise)
    if np.abs(products - products.T).max() > ROUND_OFF:
        raise ValueError("products are not symmetric")
    if (trace := float(np.trace(products))) > 1 + ROUND_OFF + NOISE_TAIL * noise * np.sqrt(dimension):
        raise ValueError(f"products: trace {trace:.3g} is more than the mean of features of norm 1 can have")
    # Spectral norm of the noise of products, and what noise of the mean does to the product of two means.
    length = noise * (np.sqrt(dimension) + NOISE_TAIL)
    smallest = float(np.linalg.eigvalsh(answer.covariance)[0])
    if smallest < -(ROUND_OFF + 4 * length + length**2):
        raise ValueError(f"covariance is not positive semi-definite: smallest eigenvalue {smallest:.3g}")
    return answer


def _check_array(name: str, array: np.ndarray, shape: tuple[int, ...], noise: float) -> None:
    if array.dtype != np.float64 or array.shape != shape:
        raise ValueError(f"{name}: expected float64 {shape}, got {array.dtype} {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: {int((~np.isfinite(array)).sum())} of {array.size} values are NaN or infinite")
    if np.abs(array).max() > 1 + ROUND_OFF + NOISE_TAIL * noise:
        raise ValueError(f"{name}: {np.abs(array).max():.3g} is more than the mean of features of norm 1 can be")
