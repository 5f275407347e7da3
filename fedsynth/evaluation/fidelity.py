"""Distance between the real and the synthetic feature distribution."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedsynth.evaluation.checks import as_feature_pair


def frechet_distance(real_features: np.ndarray, synthetic_features: np.ndarray) -> float:
    """Squared Fréchet distance between Gaussians fitted to two feature sets (Heusel et al. 2017, arXiv 1706.08500).

    Covariances divide by N - 1 and may be singular. The value falls with N, so compare at equal N only.

    Args:
        real_features: (N, D), N >= 2.
        synthetic_features: (M, D), M >= 2.

    Returns:
        A float64 value >= 0; 0 for identical sets.

    Raises:
        UserError: unequal D, fewer than two samples, NaN or infinite features.
    """
    real, synthetic = as_feature_pair(real_features, synthetic_features)
    return frechet_distance_of_moments(
        real.mean(axis=0), _covariance(real), synthetic.mean(axis=0), _covariance(synthetic)
    )


def frechet_distance_of_moments(
    real_mean: npt.NDArray[np.float64],
    real_covariance: npt.NDArray[np.float64],
    synthetic_mean: npt.NDArray[np.float64],
    synthetic_covariance: npt.NDArray[np.float64],
) -> float:
    """``|μ₁ - μ₂|² + Tr(Σ₁ + Σ₂ - 2 (Σ₁Σ₂)^½)`` for means (D,) and positive semi-definite covariances (D, D)."""
    # With Σ = L Lᵀ the trace of the square root is the nuclear norm of L₁ᵀ L₂: no root of a non-symmetric matrix,
    # and nothing to invert when a covariance is singular.
    cross = _square_factor(real_covariance).T @ _square_factor(synthetic_covariance)
    trace_of_root = np.linalg.svd(cross, compute_uv=False).sum()
    shift = real_mean - synthetic_mean
    distance = shift @ shift + np.trace(real_covariance) + np.trace(synthetic_covariance) - 2 * trace_of_root
    return max(float(distance), 0.0)


def _covariance(features: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    centred = features - features.mean(axis=0)
    covariance: npt.NDArray[np.float64] = centred.T @ centred / (len(features) - 1)
    return covariance


def _square_factor(covariance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """L with ``L Lᵀ = covariance``; round-off below zero counts as zero."""
    eigenvalues, eigenvectors = np.linalg.eigh(covariance)
    factor: npt.NDArray[np.float64] = eigenvectors * np.sqrt(eigenvalues.clip(min=0.0))
    return factor
