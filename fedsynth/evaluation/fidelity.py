"""Distances between real and synthetic features, and all fidelity measures of a synthetic set, overall and by class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fedsynth.errors import UserError
from fedsynth.evaluation.array_checks import as_feature_pair
from fedsynth.evaluation.manifold import precision_recall_density_coverage
from fedsynth.evaluation.networks.extractor import Extracted
from fedsynth.seeding import derive_seed

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.integer]
Measures = dict[str, int | float]

KERNEL_SUBSETS = 100
KERNEL_SUBSET_SIZE = 1000
SCORE_SPLITS = 10
IMAGES_PER_SPLIT = 100
MIN_IMAGES_PER_CLASS = 20


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
    shift = real.mean(axis=0) - synthetic.mean(axis=0)
    return _distance_of_factors(shift, _factor_of_features(real), _factor_of_features(synthetic))


def frechet_distance_of_moments(
    real_mean: Array, real_covariance: Array, synthetic_mean: Array, synthetic_covariance: Array
) -> float:
    """``|μ₁ - μ₂|² + Tr(Σ₁ + Σ₂ - 2 (Σ₁Σ₂)^½)`` for means (D,) and positive semi-definite covariances (D, D)."""
    factors = _factor_of_covariance(real_covariance), _factor_of_covariance(synthetic_covariance)
    return _distance_of_factors(real_mean - synthetic_mean, *factors)


def _distance_of_factors(shift: Array, real: Array, synthetic: Array) -> float:
    """The distance from factors L (D, R) of the covariances ``Σ = L Lᵀ``; their widths R may differ."""
    # The trace of the square root is the nuclear norm of L₁ᵀ L₂: no root of a non-symmetric matrix, and nothing to
    # invert when a covariance is singular.
    trace_of_root = np.linalg.svd(real.T @ synthetic, compute_uv=False).sum()
    distance = shift @ shift + np.square(real).sum() + np.square(synthetic).sum() - 2 * trace_of_root
    return max(float(distance), 0.0)


def _factor_of_features(features: Array) -> Array:
    """L with ``L Lᵀ`` the covariance of N features, at most N wide: cheap for few samples of many dimensions."""
    factor: Array = (features - features.mean(axis=0)).T / np.sqrt(len(features) - 1)
    return factor if factor.shape[1] <= factor.shape[0] else _factor_of_covariance(factor @ factor.T)


def _factor_of_covariance(covariance: Array) -> Array:
    """L with ``L Lᵀ = covariance``; round-off below zero counts as zero."""
    eigenvalues, eigenvectors = np.linalg.eigh(covariance)
    factor: Array = eigenvectors * np.sqrt(eigenvalues.clip(min=0.0))
    return factor


def kernel_distance(real_features: np.ndarray, synthetic_features: np.ndarray, seed: int) -> tuple[float, float]:
    """Squared maximum mean discrepancy under the kernel ``(x·y / D + 1)³`` (Bińkowski et al. 2018, arXiv 1801.01401).

    In the features of Inception-v3 this is KID. Unlike a Fréchet distance its expectation does not depend on N: 0 for
    independent draws of one distribution, so that estimates fall below 0 too. Sets with equal shares of every class are
    more alike than independent draws: theirs lie a little below 0, so read them beside those of real images.

    The mean over 100 pairs of random subsets of 1,000 samples, or of half the smaller set if that is less: subsets that
    are the whole set would show no spread.

    Args:
        real_features: (N, D), N >= 2.
        synthetic_features: (M, D), M >= 2.
        seed: fixes the subsets.

    Returns:
        Mean and standard deviation over the subsets.

    Raises:
        UserError: unequal D, fewer than two samples, NaN or infinite features.
    """
    # Here, because torch-fidelity loads torchvision: seconds that a silo need not spend.
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

    # In float64: torch-fidelity sums a million kernel values in the precision it is given.
    real, synthetic = as_feature_pair(real_features, synthetic_features)
    half = min(len(real), len(synthetic)) // 2
    answer = kid_features_to_metric(
        torch.from_numpy(real),
        torch.from_numpy(synthetic),
        kid_subsets=KERNEL_SUBSETS,
        kid_subset_size=max(2, min(KERNEL_SUBSET_SIZE, half)),
        rng_seed=_short_seed(seed, "kernel-distance"),
        verbose=False,
    )
    return answer[KEY_METRIC_KID_MEAN], answer[KEY_METRIC_KID_STD]


def inception_score(logits: np.ndarray, seed: int) -> tuple[float, float | None]:
    """``exp E KL(p(y|x) ‖ p(y))`` of a classifier's answers (Salimans et al. 2016, arXiv 1606.03498).

    With the logits of Inception-v3 this is the published score; with another classifier's it compares under that
    classifier only. Mean over ten random parts, or as many as hold 100 images each, one at least.

    Args:
        logits: (N, classes), N >= 1.
        seed: fixes the parts.

    Returns:
        Mean, from 1 to the number of classes, and standard deviation over the parts; None of a single part.

    Raises:
        UserError: no images, NaN or infinite logits.
    """
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

    if logits.ndim != 2 or not len(logits) or not np.isfinite(logits).all():
        raise UserError(
            f"logits of shape {logits.shape}: expected are finite ones of at least one image, (N, classes); check the "
            "images and the weights of the feature extractor"
        )
    differences = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    # A probability of exactly 0 would give 0 · log 0 = NaN; exp(-700) is the last that float64 holds.
    parts = max(1, min(SCORE_SPLITS, len(logits) // IMAGES_PER_SPLIT))
    answer = isc_features_to_metric(
        torch.from_numpy(differences.clip(min=-700.0)),
        splits=parts,
        rng_seed=_short_seed(seed, "inception-score"),
    )
    return answer[KEY_METRIC_ISC_MEAN], answer[KEY_METRIC_ISC_STD] if parts > 1 else None


def fidelity_measures(
    real: Extracted,
    synthetic: Extracted,
    real_labels: Labels,
    synthetic_labels: Labels,
    classes: Sequence[str],
    seed: int,
    k: int = 5,
) -> dict[str, Any]:
    """Measure synthetic images against real ones, over all classes and within each.

    Every comparison holds as many real as synthetic images: the larger side is cut to a random subset.

    Args:
        real, synthetic: N and M images as one extractor sees them.
        real_labels, synthetic_labels: integers (N,) and (M,), indices of ``classes``.
        classes: their names.
        seed: fixes all subsets.
        k: neighbours of precision, recall, density and coverage.

    Returns:
        ``overall``: the dict of :func:`measure`; ``per-class``: one by name of the class, without ``inception-score``,
        which means nothing within a class; ``left-out``: why, by name of a class with fewer than 20 images on a side
        or real images that are all alike.

    Raises:
        UserError: real features are all alike, NaN or infinite features, unequal D, or k not below both N and M.
    """
    per_class: dict[str, Measures] = {}
    left_out: dict[str, str] = {}
    needed = max(MIN_IMAGES_PER_CLASS, k + 1)
    for index, name in enumerate(classes):
        # Without the logits: an inception score means nothing within a class.
        of_real = Extracted(real.features[real_labels == index])
        of_synthetic = Extracted(synthetic.features[synthetic_labels == index])
        if min(len(of_real), len(of_synthetic)) < needed:
            left_out[name] = (
                f"{len(of_real)} real and {len(of_synthetic)} synthetic images, {needed} of each are needed"
            )
        elif _all_alike(of_real):
            left_out[name] = "the features of all real images are equal"
        else:
            per_class[name] = measure(of_real, of_synthetic, derive_seed(seed, "fidelity-of-class", index), k)
    return {"overall": measure(real, synthetic, seed, k), "per-class": per_class, "left-out": left_out}


def measure(real: Extracted, synthetic: Extracted, seed: int, k: int = 5) -> Measures:
    """All fidelity measures of one set of synthetic images, in one feature space.

    Args:
        real, synthetic: as one extractor sees them; the larger side is cut to a random subset.
        seed: fixes all subsets.
        k: neighbours of precision, recall, density and coverage.

    Returns:
        ``n`` and ``k``; ``frechet-distance``; ``kernel-distance`` and, where there are logits, ``inception-score``,
        each with its standard deviation over subsets as ``…-std``, which a score of one part lacks; ``precision``,
        ``recall``, ``density`` and ``coverage``.

    Raises:
        UserError: real features are all alike, NaN or infinite features, unequal D, or k not in 1..n - 1.
    """
    n = min(len(real), len(synthetic))
    real = _subset(real, n, seed, "real")
    synthetic = _subset(synthetic, n, seed, "synthetic")
    as_feature_pair(real.features, synthetic.features)
    if _all_alike(real):
        raise UserError("real images: the features of all are equal, so nothing can be near to them; check the images")
    measures: Measures = {"n": n, "k": k, "frechet-distance": frechet_distance(real.features, synthetic.features)}
    mean, std = kernel_distance(real.features, synthetic.features, seed)
    measures |= {"kernel-distance": mean, "kernel-distance-std": std}
    if synthetic.logits is not None:
        score, spread = inception_score(synthetic.logits, seed)
        measures |= {"inception-score": score} | ({} if spread is None else {"inception-score-std": spread})
    return {
        **measures,
        **precision_recall_density_coverage(real.features, synthetic.features, k),
    }


def _subset(extracted: Extracted, n: int, seed: int, side: str) -> Extracted:
    if len(extracted) == n:
        return extracted
    rng = np.random.default_rng(derive_seed(seed, "fidelity-subset", side))
    return extracted[np.sort(rng.choice(len(extracted), n, replace=False))]


def _all_alike(extracted: Extracted) -> bool:
    return bool((extracted.features == extracted.features[0]).all())


def _short_seed(seed: int, purpose: str) -> int:
    # NumPy's legacy generator, which torch-fidelity uses, takes 32 bits.
    return derive_seed(seed, purpose) & 0xFFFFFFFF
