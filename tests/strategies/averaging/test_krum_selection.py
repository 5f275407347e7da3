from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord
from numpy.typing import NDArray

from fedsynth.messages import transport
from strategies.averaging.aggregation import chunk_length
from strategies.averaging.krum_selection import bulyan_select, krum_scores, krum_select, squared_distances


def records(values: NDArray[np.float32], wire_dtype: str | None = None) -> list[ArrayRecord]:
    """One model a row, of two layers and a buffer."""
    parts = [torch.from_numpy(row).split([1, len(row) - 1]) for row in values]
    return [
        transport.encode_tensors({"first": first, "steps": torch.tensor([1000 * k]), "rest": rest}, wire_dtype)
        for k, (first, rest) in enumerate(parts)
    ]


def exact_distances(values: NDArray[np.float32]) -> NDArray[np.float64]:
    number, exact = len(values), values.astype(np.float64)
    distances = np.zeros((number, number))
    for i, j in itertools.combinations(range(number), 2):
        difference = exact[i] - exact[j]
        distances[i, j] = distances[j, i] = difference @ difference
    return distances


def exact_scores(distances: NDArray[np.float64], neighbours: int) -> list[float]:
    """Blanchard et al. (2017), Section 4, transcribed."""
    number = len(distances)
    return [sum(sorted(distances[i, j] for j in range(number) if j != i)[:neighbours]) for i in range(number)]


def normal(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("number", [1, 5, 30])
def test_distances_agree_with_differences_in_float64(number: int) -> None:
    values = normal(number, number, 50)
    given = records(values)
    distances = squared_distances(given)
    assert distances.dtype == torch.float64
    np.testing.assert_allclose(distances.numpy(), exact_distances(values), rtol=1e-12)
    assert [list(record) for record in given] == [["first", "steps", "rest"]] * number


def test_layers_longer_than_what_is_worked_on_at_once() -> None:
    values = normal(0, 5, 2 * chunk_length(5) + 7)
    np.testing.assert_allclose(squared_distances(records(values)).numpy(), exact_distances(values), rtol=1e-12)


def test_small_drifts_of_large_models_keep_their_distances() -> None:
    number, size, central, drift = 8, 200_000, 5, 1e-7
    generator = np.random.default_rng(0)
    shared = 0.05 * generator.standard_normal(size, dtype=np.float32)
    # Summed in float64 and rounded once; one drifts half as far.
    values = np.stack([shared] * number)
    for k, row in enumerate(values):
        noise = generator.standard_normal(size, dtype=np.float32).astype(np.float64)
        row[:] = shared + drift * (0.5 if k == central else 1.0) * noise
    distances, exact = squared_distances(records(values)), exact_distances(values)
    np.testing.assert_allclose(distances.numpy(), exact, rtol=1e-6)
    assert int(np.argmin(exact_scores(exact, number - 2 - 2))) == central
    assert krum_select(distances, 2, 1) == [central]


def test_an_extreme_model_spoils_only_its_own_distances() -> None:
    values = normal(2, 6, 1000)
    values[2] = 3e38
    distances, others = squared_distances(records(values)), [0, 1, 3, 4, 5]
    honest = distances[others][:, others].numpy()
    np.testing.assert_allclose(honest, exact_distances(values[others]), rtol=1e-12)
    assert (distances[2, others] > 1e60).all()
    assert 2 not in krum_select(distances, 1, 5)
    assert 2 not in bulyan_select(distances, 1)[:3]


@pytest.mark.parametrize(("number", "num_malicious"), [(3, 0), (9, 3)])
def test_scores_agree_with_a_transcription(number: int, num_malicious: int) -> None:
    distances = exact_distances(normal(4, number, 20))
    scores = krum_scores(torch.from_numpy(distances), num_malicious)
    np.testing.assert_allclose(scores.numpy(), exact_scores(distances, number - num_malicious - 2), rtol=1e-12)


def test_distance_to_an_equal_model_counts_though_not_to_itself() -> None:
    values = np.array([[0, 0], [3, 0], [0, 0], [0, 4], [9, 9]], np.float32)
    scores = krum_scores(squared_distances(records(values)), 1)
    np.testing.assert_array_equal(scores.numpy(), [9, 18, 9, 32, 117 + 106])


def test_best_scores_come_first_and_of_equal_ones_the_first_position() -> None:
    points = torch.tensor([5.0, 2.0, 0.0, -2.0, 100.0, 0.0])
    distances = (points[:, None] - points).double().square()
    # Two neighbours: 9 + 25, 4 + 4, 0 + 4, 4 + 4, ..., 0 + 4.
    assert krum_select(distances, 2, 1) == [2]
    assert krum_select(distances, 2, 5) == [2, 5, 1, 3, 0]
    assert krum_select(torch.zeros(4, 4, dtype=torch.float64), 0, 3) == [0, 1, 2]


def test_neither_distances_nor_records_are_changed() -> None:
    distances = torch.from_numpy(exact_distances(normal(5, 7, 10)))
    before = distances.clone()
    krum_select(distances, 1, 2)
    bulyan_select(distances, 1)
    assert torch.equal(distances, before)


def bulyan_transcribed(distances: NDArray[np.float64], num_malicious: int) -> list[int]:
    """El Mhamdi et al. (2018), Section 4, with at least one neighbour."""
    remaining, chosen = list(range(len(distances))), []
    while len(chosen) < len(distances) - 2 * num_malicious:
        scores = {}
        for i in remaining:
            others = sorted(distances[i, j] for j in remaining if j != i)
            scores[i] = sum(others[: max(1, len(remaining) - num_malicious - 2)])
        chosen.append(min(remaining, key=lambda i: scores[i]))
        remaining.remove(chosen[-1])
    return chosen


@pytest.mark.parametrize(("number", "num_malicious"), [(3, 0), (5, 2), (16, 3)])
def test_bulyan_agrees_with_a_transcription(number: int, num_malicious: int) -> None:
    distances = exact_distances(normal(6, number, 8))
    chosen = bulyan_select(torch.from_numpy(distances), num_malicious)
    assert len(chosen) == number - 2 * num_malicious
    assert chosen == bulyan_transcribed(distances, num_malicious)


def test_bulyan_scores_anew_after_every_choice() -> None:
    distances = torch.from_numpy(exact_distances(normal(6, 11, 8)))
    assert set(bulyan_select(distances, 2)) != set(krum_select(distances, 2, 7))


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
