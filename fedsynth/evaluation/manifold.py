"""Overlap of the real and the synthetic manifold, each drawn as balls that reach to the k-th nearest neighbour."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from fedsynth.errors import UserError
from fedsynth.evaluation.array_checks import as_feature_pair, as_features

Array = npt.NDArray[np.float64]

ROWS_PER_BLOCK = 128
ROUND_OFF = 1e-12


def precision_recall_density_coverage(real: np.ndarray, synthetic: np.ndarray, k: int = 5) -> dict[str, float]:
    """Measure how far the synthetic samples lie in the real manifold and how much of it they reach.

    Precision and recall after Kynkäänniemi et al. 2019 (arXiv 1904.06991), density and coverage after Naeem et al.
    2020 (arXiv 2002.09797). A sample on the border of a ball lies inside for precision, recall and coverage and outside
    for density, so identical sets of distinct samples give 1 for all four. Of other packages ``prdc`` puts borders
    outside for all four and ``torch-fidelity`` inside for precision and recall; without ties at a border, all agree.
    Distances are taken a block of rows at a time: memory is linear in N + M.

    Args:
        real: features (N, D), N > k.
        synthetic: features (M, D), M > k.
        k: neighbour whose distance is the radius, at least 1; a sample is not its own neighbour.

    Returns:
        ``precision``, ``recall`` and ``coverage`` in 0..1 and ``density`` >= 0 (1 is expected of equal distributions).

    Raises:
        UserError: unequal D, NaN or infinite features, or k not in 1..min(N, M) - 1.
    """
    real, synthetic = as_feature_pair(real, synthetic)
    # Around the real mean: small norms keep |x|² + |y|² - 2xy exact.
    mean = real.mean(axis=0)
    real -= mean
    synthetic -= mean
    largest = min(len(real), len(synthetic)) - 1
    if not 1 <= k <= largest:
        raise UserError(f"k = {k}: allowed is 1 to {largest} with {largest + 1} samples; lower k or give more samples")
    real_inner, real_outer = _squared_radii(real, k)
    _, synthetic_outer = _squared_radii(synthetic, k)

    inside_real = np.zeros(len(synthetic), dtype=bool)
    inside_synthetic, covered = np.zeros((2, len(real)), dtype=bool)
    ball_hits = 0
    for rows, distances in squared_distance_blocks(real, synthetic):
        within = distances <= real_outer[rows, None]
        inside_real |= within.any(axis=0)
        covered[rows] = within.any(axis=1)
        inside_synthetic[rows] = (distances <= synthetic_outer).any(axis=1)
        ball_hits += int(np.count_nonzero(distances < real_inner[rows, None]))
    return {
        "precision": float(inside_real.mean()),
        "recall": float(inside_synthetic.mean()),
        "density": ball_hits / (k * len(synthetic)),
        "coverage": float(covered.mean()),
    }


def neighbour_radii(points: np.ndarray, k: int) -> Array:
    """Return the distance (N,) of each of N points (N, D) to its k-th nearest other one, a round-off above.

    Raises:
        UserError: NaN or infinite points, or k not in 1..N - 1.
    """
    checked = as_features("features", points)
    if not 1 <= k < len(checked):
        raise UserError(
            f"k = {k}: allowed is 1 to {len(checked) - 1} with {len(checked)} samples; lower k or give more"
        )
    _, outer = _squared_radii(checked - checked.mean(axis=0), k)
    radii: Array = np.sqrt(outer)
    return radii


def inside_balls(points: np.ndarray, centres: np.ndarray, radii: np.ndarray) -> npt.NDArray[np.bool_]:
    """Say of each point (N, D) whether it is in any of the balls around ``centres`` (M, D), borders included.

    Raises:
        UserError: unequal D, NaN or infinite values.
    """
    inside = np.zeros(len(points), dtype=bool)
    points, centres = as_feature_pair(points, centres)
    mean = centres.mean(axis=0)
    for rows, distances in squared_distance_blocks(points - mean, centres - mean):
        inside[rows] = (distances <= np.square(radii)).any(axis=1)
    return inside


def _squared_radii(points: Array, k: int) -> tuple[Array, Array]:
    """Squared k-th-neighbour distance of each point, a round-off below and a round-off above."""
    radii = np.empty(len(points))
    for rows, distances in squared_distance_blocks(points, points):
        distances[np.arange(len(distances)), np.arange(rows.start, rows.stop)] = np.inf
        distances.partition(k - 1, axis=1)
        radii[rows] = distances[:, k - 1]
    slack = ROUND_OFF * (_squared_norms(points) + radii)
    return radii - slack, radii + slack


def squared_distance_blocks(rows_of: Array, columns_of: Array) -> Iterator[tuple[slice, Array]]:
    """Yield (rows, squared distances (rows, M)), which the next block overwrites; round-off may put one below zero."""
    # [x, |x|², 1] · [-2y, 1, |y|²] = |x - y|²: the product alone, with no further pass over the block.
    right = np.column_stack([-2.0 * columns_of, np.ones(len(columns_of)), _squared_norms(columns_of)]).T
    # One buffer for all blocks: fresh memory of this size costs more than the sums that fill it.
    buffer = np.empty((min(ROWS_PER_BLOCK, len(rows_of)), len(columns_of)))
    for start in range(0, len(rows_of), ROWS_PER_BLOCK):
        rows = slice(start, min(start + ROWS_PER_BLOCK, len(rows_of)))
        block = rows_of[rows]
        left = np.column_stack([block, _squared_norms(block), np.ones(len(block))])
        yield rows, np.matmul(left, right, out=buffer[: len(block)])


def _squared_norms(points: Array) -> Array:
    norms: Array = np.einsum("nd,nd->n", points, points)
    return norms
