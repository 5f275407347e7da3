from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from clients.noisy_counts import add_geometric_noise
from fedsynth.few_labels.selection import NEVER, bin_edges, confusion, precision_thresholds, select


def probabilities(confidence: list[float], predicted: list[int], classes: int) -> torch.Tensor:
    """Rows whose highest value is ``confidence`` at ``predicted``; the rest is spread over the others."""
    rows = torch.tensor([[(1 - p) / (classes - 1)] * classes for p in confidence], dtype=torch.float64)
    rows[torch.arange(len(rows)), torch.tensor(predicted)] = torch.tensor(confidence, dtype=torch.float64)
    return rows


def test_images_are_counted_by_class_prediction_and_bin() -> None:
    said = probabilities([0.5, 0.74, 0.75, 1.0], [0, 1, 1, 2], 3)
    matrix = confusion(said, torch.tensor([0, 0, 1, 2]), 4)
    assert matrix.dtype == torch.int64
    assert matrix.sum() == 4
    assert torch.nonzero(matrix).tolist() == [[0, 0, 2], [0, 1, 2], [1, 1, 3], [2, 2, 3]]


def test_thresholds_of_a_matrix_made_by_hand() -> None:
    matrix = torch.zeros((2, 2, 4), dtype=torch.int64)
    matrix[0, 0] = torch.tensor([0, 2, 4, 10])
    matrix[1, 0] = torch.tensor([3, 3, 1, 0])
    matrix[0, 1] = torch.tensor([0, 5, 0, 0])
    # Class 0: P(3) = 10.5/11 = .954, P(2) = 14.5/16 = .906, P(1) = 16.5/21 = .786, P(0) = 16.5/24 = .688.
    # Class 1 is never right: P(3) = P(2) = .5/1, P(1) = P(0) = .5/6.
    found = precision_thresholds(matrix, 0.9)
    assert found.confidence.tolist() == [0.5, 0.5]
    assert found.reached.tolist() == [True, False]
    assert precision_thresholds(matrix, 0.95).confidence.tolist() == [0.75, 0.5]
    assert precision_thresholds(matrix, 0.78).confidence.tolist() == [0.25, 0.5]
    assert precision_thresholds(matrix, 0.5).reached.tolist() == [True, True]


def test_a_perfect_classifier_needs_no_confidence_once_it_is_known_well_enough() -> None:
    # Of a class that was never predicted the surest predictions alone are taken.
    for count, reached, least in ((4, True, 0.0), (3, False, 0.0), (0, False, 0.95)):
        matrix = torch.zeros((10, 10, 20), dtype=torch.int64)
        matrix[range(10), range(10), 7] = count
        # (n + 1/10) / (n + 1) >= .8 from n = 3.5 on.
        found = precision_thresholds(matrix, 0.8)
        assert found.reached.tolist() == [reached] * 10
        assert found.confidence.tolist() == pytest.approx([least] * 10)


@pytest.mark.parametrize("bins", [1, 7, 20])
def test_what_is_kept_is_what_the_bins_say(bins: int) -> None:
    generator = torch.Generator().manual_seed(bins)
    said = torch.rand((2000, 5), generator=generator, dtype=torch.float64).pow(8)
    said = torch.cat([said / said.sum(1, keepdim=True), probabilities([0.95, 0.35, 3 / 7, 1.0], [0, 1, 2, 3], 5)])
    tau = torch.randint(bins, (5,), generator=generator)
    kept, predicted = select(said, bin_edges(bins)[tau])
    matrix = confusion(said, predicted, bins)
    for j in range(5):
        assert (predicted[kept] == j).sum() == matrix[j, j, tau[j] :].sum()
    assert kept.tolist() == sorted(kept.tolist())


def test_never_is_above_every_confidence() -> None:
    kept, predicted = select(probabilities([1.0, 1.0], [0, 1], 2), torch.tensor([NEVER, 0.0], dtype=torch.float64))
    assert (kept.tolist(), predicted.tolist()) == ([1], [0, 1])


def test_noise_moves_what_is_added_up_by_what_is_stated() -> None:
    """Two-sided geometric noise of scale s has the variance 2 q / (1 - q)², q = exp(-1/s), in each cell."""
    scale, silos, cells = 2.0, 5, 400
    q = math.exp(-1 / scale)
    expected = math.sqrt(silos * cells * 2 * q / (1 - q) ** 2)
    rng = np.random.default_rng(0)
    exact = np.zeros(cells, np.int64)
    sums = [sum(add_geometric_noise(exact, scale, rng).sum() for _ in range(silos)) for _ in range(400)]
    assert abs(np.mean(sums)) < 4 * expected / math.sqrt(400)
    assert np.std(sums) == pytest.approx(expected, rel=0.15)


def test_noise_that_counts_outweigh_changes_no_threshold_and_negative_counts_are_none() -> None:
    matrix = torch.zeros((3, 3, 4), dtype=torch.int64)
    matrix[range(3), range(3)] = torch.tensor([0, 100, 1000, 4000])
    matrix[0, 1, 1] = 1500
    rng = np.random.default_rng(1)
    noisy = torch.from_numpy(add_geometric_noise(matrix.numpy().ravel(), 1.0, rng)).view(matrix.shape)
    assert (noisy < 0).any()
    for found, exact in zip(precision_thresholds(noisy, 0.8), precision_thresholds(matrix, 0.8), strict=True):
        assert torch.equal(found, exact)
    of_noise_alone = precision_thresholds(torch.full((3, 3, 4), -5), 0.8)
    assert not of_noise_alone.reached.any()
