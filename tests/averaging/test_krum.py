from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fedsynth.averaging.krum import bulyan_select, krum_scores, krum_select, squared_distances
from fedsynth.averaging.layers import Layers, chunk_length


def models_of(values: NDArray[np.float32]) -> list[Layers]:
    """One model a row, of three layers, one of them empty, and a buffer."""
    return [
        {"first": row[:1], "none": row[:0], "steps": torch.tensor([1000 * k]), "rest": row[1:]}
        for k, row in enumerate(torch.from_numpy(values))
    ]


def exact_distances(values: NDArray[np.float32]) -> NDArray[np.float64]:
    number, exact = len(values), values.astype(np.float64)
    distances = np.zeros((number, number))
    for i, j in itertools.combinations(range(number), 2):
        difference = exact[i] - exact[j]
        distances[i, j] = distances[j, i] = difference @ difference
    return distances


def normal(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(("number", "length"), [(1, 50), (30, 50), (5, 2 * chunk_length(5) + 7)])
def test_distances_agree_with_differences_in_float64(number: int, length: int) -> None:
    values = normal(number, number, length)
    given = models_of(values)
    distances = squared_distances(given)
    assert distances.dtype == torch.float64
    np.testing.assert_allclose(distances.numpy(), exact_distances(values), rtol=1e-12)
    assert [list(model) for model in given] == [["first", "none", "steps", "rest"]] * number


def test_small_drifts_of_large_models_keep_their_distances() -> None:
    number, size, central, drift = 8, 200_000, 5, 1e-7
    generator = np.random.default_rng(0)
    shared = 0.05 * generator.standard_normal(size, dtype=np.float32)
    # Summed in float64 and rounded once; one drifts half as far.
    values = np.stack([shared] * number)
    for k, row in enumerate(values):
        noise = generator.standard_normal(size, dtype=np.float32).astype(np.float64)
        row[:] = shared + drift * (0.5 if k == central else 1.0) * noise
    distances = squared_distances(models_of(values))
    np.testing.assert_allclose(distances.numpy(), exact_distances(values), rtol=1e-6)
    assert krum_select(distances, 2, 1) == [central]


def test_an_extreme_model_spoils_only_its_own_distances() -> None:
    values = normal(2, 6, 1000)
    values[2] = 3e38
    distances, others = squared_distances(models_of(values)), [0, 1, 3, 4, 5]
    honest = distances[others][:, others].numpy()
    np.testing.assert_allclose(honest, exact_distances(values[others]), rtol=1e-12)
    assert (distances[2, others] > 1e60).all()
    assert 2 not in krum_select(distances, 1, 5)
    assert 2 not in bulyan_select(distances, 1)[:3]


def test_distance_to_an_equal_model_counts_though_not_to_itself() -> None:
    values = np.array([[0, 0], [3, 0], [0, 0], [0, 4], [9, 9]], np.float32)
    scores = krum_scores(squared_distances(models_of(values)), 1)
    np.testing.assert_array_equal(scores.numpy(), [9, 18, 9, 32, 117 + 106])


def test_best_scores_come_first_and_of_equal_ones_the_first_position() -> None:
    points = torch.tensor([5.0, 2.0, 0.0, -2.0, 100.0, 0.0])
    distances = (points[:, None] - points).double().square()
    # Two neighbours: 9 + 25, 4 + 4, 0 + 4, 4 + 4, ..., 0 + 4.
    assert krum_select(distances, 2, 1) == [2]
    assert krum_select(distances, 2, 5) == [2, 5, 1, 3, 0]
    assert krum_select(torch.zeros(4, 4, dtype=torch.float64), 0, 3) == [0, 1, 2]


def test_bulyan_scores_anew_after_every_choice_and_changes_no_distance() -> None:
    distances = torch.from_numpy(exact_distances(normal(6, 11, 8)))
    before = distances.clone()
    assert set(bulyan_select(distances, 2)) != set(krum_select(distances, 2, 7))
    assert torch.equal(distances, before)


def test_numbers_out_of_range_are_refused() -> None:
    distances = torch.zeros(5, 5, dtype=torch.float64)
    with pytest.raises(ValueError, match="num_malicious = 3: must be >= 0 and <= 2"):
        krum_scores(distances, 3)
    with pytest.raises(ValueError, match="num_malicious = -1"):
        krum_select(distances, -1, 1)
    with pytest.raises(ValueError, match="count = 6: must be >= 1 and at most 5"):
        krum_select(distances, 0, 6)
    with pytest.raises(ValueError, match="num_malicious = 3: must be >= 0 and less than half of 5 models"):
        bulyan_select(distances, 3)
