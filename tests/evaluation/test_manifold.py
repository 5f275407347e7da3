from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from prdc import compute_prdc
from torch_fidelity.metric_prc import prc_features_to_metric

from fedsynth.errors import UserError
from fedsynth.evaluation import precision_recall_density_coverage


def oracle(real: np.ndarray, synthetic: np.ndarray, k: int) -> dict[str, float]:
    """The four definitions as written in the papers, one pair at a time."""

    def radius(points: np.ndarray, index: int) -> float:
        others = [float(np.linalg.norm(points[index] - p)) for i, p in enumerate(points) if i != index]
        return sorted(others)[k - 1]

    real_radii = [radius(real, i) for i in range(len(real))]
    synthetic_radii = [radius(synthetic, j) for j in range(len(synthetic))]
    distance = [[float(np.linalg.norm(x - y)) for y in synthetic] for x in real]
    rows, columns = range(len(real)), range(len(synthetic))
    return {
        "precision": np.mean([any(distance[i][j] <= real_radii[i] for i in rows) for j in columns]),
        "recall": np.mean([any(distance[i][j] <= synthetic_radii[j] for j in columns) for i in rows]),
        "density": sum(distance[i][j] < real_radii[i] for i in rows for j in columns) / (k * len(synthetic)),
        "coverage": np.mean([any(distance[i][j] <= real_radii[i] for j in columns) for i in rows]),
    }


@pytest.mark.parametrize(("k", "offset"), [(1, 0.0), (5, 1e4)])
def test_agrees_with_a_double_loop_over_several_blocks(k, offset, monkeypatch):
    monkeypatch.setattr("fedsynth.evaluation.manifold.ROWS_PER_BLOCK", 7)
    rng = np.random.default_rng(k)
    real = rng.normal(size=(40, 4)) + offset
    synthetic = 0.8 * rng.normal(size=(30, 4)) + 0.7 + offset
    measured = precision_recall_density_coverage(real, synthetic, k)
    assert measured == pytest.approx(oracle(real, synthetic, k), abs=1e-12)
    assert all(0 < value < 1.5 for value in measured.values())


def test_agrees_with_other_packages_where_no_sample_lies_on_a_border(capsys):
    rng = np.random.default_rng(1)
    real, synthetic = rng.normal(size=(90, 6)), 0.8 * rng.normal(size=(300, 6)) + 0.4
    measured = precision_recall_density_coverage(real, synthetic, 3)
    assert measured == pytest.approx(compute_prdc(real, synthetic, 3), abs=1e-12)
    theirs = prc_features_to_metric(
        torch.from_numpy(synthetic), torch.from_numpy(real), prc_neighborhood=3, verbose=False
    )
    assert [measured["precision"], measured["recall"]] == pytest.approx(
        [theirs["precision"], theirs["recall"]], abs=1e-6
    )


def test_borders_differ_from_other_packages_as_documented(capsys):
    """On a line of equal steps every nearest neighbour lies on a border."""
    line, shifted = np.arange(8.0)[:, None], np.arange(8.0)[:, None] + 1
    measured = precision_recall_density_coverage(line, shifted, 1)
    assert measured == {"precision": 1.0, "recall": 1.0, "density": 7 / 8, "coverage": 1.0}
    outside = compute_prdc(line, shifted, 1)
    assert outside == pytest.approx({"precision": 7 / 8, "recall": 7 / 8, "density": 7 / 8, "coverage": 7 / 8})
    inside = prc_features_to_metric(
        torch.from_numpy(shifted), torch.from_numpy(line), prc_neighborhood=1, verbose=False
    )
    assert [inside["precision"], inside["recall"]] == [1.0, 1.0]


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_identical_sets_give_one(scale):
    points = scale * np.random.default_rng(1).normal(size=(300, 64))
    measured = precision_recall_density_coverage(points, points[::-1])
    assert measured == {"precision": 1.0, "recall": 1.0, "density": 1.0, "coverage": 1.0}


def test_identical_sets_full_of_duplicates_still_overlap():
    points = np.repeat(np.random.default_rng(2).normal(size=(3, 8)), 10, axis=0)
    measured = precision_recall_density_coverage(points, points)
    assert [measured[name] for name in ("precision", "recall", "coverage")] == [1.0, 1.0, 1.0]


def test_float32_features_of_large_offset_are_measured_in_float64():
    points = (np.random.default_rng(4).normal(size=(60, 3)) + 1000).astype(np.float32)
    other = (np.random.default_rng(5).normal(size=(60, 3)) + 1000).astype(np.float32)
    expected = oracle(points.astype(np.float64), other.astype(np.float64), 5)
    assert precision_recall_density_coverage(points, other) == pytest.approx(expected, abs=1e-12)


def test_memory_grows_with_the_samples_not_with_their_square():
    count = 4000
    points = np.random.default_rng(6).normal(size=(count, 8))
    tracemalloc.start()
    precision_recall_density_coverage(points, points + 0.1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < count * count * 8 / 3


@pytest.mark.parametrize("k", [0, 4])
def test_an_impossible_k_is_refused(k):
    with pytest.raises(UserError, match=f"k = {k}: allowed is 1 to 3 with 4 samples"):
        precision_recall_density_coverage(np.eye(9), np.eye(9)[:4], k)


def test_features_with_nan_are_refused():
    with pytest.raises(UserError, match="real features: features of 1 of 9 samples"):
        precision_recall_density_coverage(np.where(np.eye(9) * np.arange(9) == 8, np.nan, 0.0), np.eye(9))
