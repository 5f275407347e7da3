from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fedsynth.averaging import Layers, mean_around_median, median, trimmed_mean
from fedsynth.averaging.layers import chunk_length

Rule = Callable[[Sequence[Layers]], Layers]

RULES: dict[str, Rule] = {
    "median": median,
    "trimmed mean": lambda records: trimmed_mean(records, (len(records) - 1) // 4),
    "mean around median": lambda records: mean_around_median(records, (len(records) + 1) // 2),
}


def records(values: NDArray[np.generic]) -> list[Layers]:
    """One model a row."""
    return [{"w": torch.from_numpy(row)} for row in values]


def layer(model: Layers) -> NDArray[np.generic]:
    values: NDArray[np.generic] = model["w"].numpy()
    return values


def normal(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def nearest_to_median(values: NDArray[np.float32], count: int) -> NDArray[np.float64]:
    """Transcription for one coordinate at a time, by sorting distances."""
    exact = values.astype(np.float64)
    order = np.argsort(np.abs(exact - np.median(exact, axis=0)), axis=0, kind="stable")
    mean: NDArray[np.float64] = np.take_along_axis(exact, order[:count], axis=0).mean(axis=0)
    return mean


@pytest.mark.parametrize(("number", "length"), [(1, 50), (2, 50), (7, 50), (120, 50), (10, chunk_length(10) + 7)])
def test_median_is_numpys_to_the_last_bit(number: int, length: int) -> None:
    values = normal(number, number, 2, length)
    np.testing.assert_array_equal(layer(median(records(values))), np.median(values, axis=0))


@pytest.mark.parametrize("number", [1, 2, 5, 10])
def test_all_zeros_and_ones_come_out_right(number: int) -> None:
    # A network of exchanges sorts everything if it sorts these (Knuth's zero-one principle).
    values = np.array(list(itertools.product([0, 1], repeat=number)), np.float32).T
    for cut in range((number + 1) // 2):
        exact = np.sort(values, axis=0)[cut : number - cut].mean(axis=0, dtype=np.float64)
        np.testing.assert_array_equal(layer(trimmed_mean(records(values), cut)), exact.astype(np.float32))


@pytest.mark.parametrize("number", [5, 110])
def test_trimmed_mean_agrees_with_a_sort_in_float64(number: int) -> None:
    values = normal(1, number, 400)
    for cut in {0, 1, number // 4, (number - 1) // 2}:
        exact = np.sort(values.astype(np.float64), axis=0)[cut : number - cut].mean(axis=0)
        np.testing.assert_allclose(layer(trimmed_mean(records(values), cut)), exact, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("number", [1, 2, 5, 8, 103])
def test_mean_around_median_agrees_with_sorted_distances(number: int) -> None:
    values = normal(2, number, 300)
    for count in {1, number // 2 or 1, max(1, number - 2), number}:
        if number % 2 == 0 and count % 2 == 1:
            continue  # the middle pair is equally near to the median
        actual = layer(mean_around_median(records(values), count))
        np.testing.assert_allclose(actual, nearest_to_median(values, count), rtol=2e-7, atol=1e-12)


def test_of_values_equally_near_to_the_median_the_smaller_is_kept() -> None:
    def kept(values: list[float], count: int) -> float:
        return float(layer(mean_around_median(records(np.array(values, np.float32)[:, None]), count))[0])

    assert kept([3, 1], 1) == 1
    assert kept([5, 4, 3], 2) == 3.5
    assert kept([9, 1, 5, 4, 6], 4) == 4
    assert kept([0, 10, 11, 12, 100], 2) == 10.5
    assert kept([0, 1, 10, 11, 12, 13, 1000], 4) == 11.5


def test_middle_pair_of_the_largest_numbers_does_not_overflow() -> None:
    largest = np.finfo(np.float32).max
    values = np.array([[largest], [largest], [0], [largest]], np.float32)
    assert layer(median(records(values)))[0] == largest


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("number", [10, 105])
def test_identical_models_give_that_model(name: str, number: int) -> None:
    one = np.concatenate([normal(4, 60), np.array([0, -0.0, 1e-45, -1e-45, 1e-38, 3.4e38, -3.4e38], np.float32)])
    np.testing.assert_array_equal(layer(RULES[name](records(np.tile(one, (number, 1))))), one)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("number", [6, 102])
def test_order_of_models_does_not_change_a_bit(name: str, number: int) -> None:
    # Sums depend on their order with such sizes; ties and both zeros must not show it either.
    generator = np.random.default_rng(number)
    values = (generator.normal(size=(number, 500)) * 10.0 ** generator.integers(-20, 20, (number, 500))).astype("f4")
    values[:, :200] = generator.choice(np.array([-1, -0.0, 0, 1], np.float32), (number, 200))
    results = {layer(RULES[name](records(generator.permutation(values)))).tobytes() for _ in range(6)}
    assert len(results) == 1


@pytest.mark.parametrize("name", RULES)
def test_whole_numbers_stay_whole(name: str) -> None:
    values = np.array([[3, 10, 2**40], [4, 10, 2**40], [900, 11, 2**40 + 1], [3, 12, 2**40 + 1], [4, 11, 2**40 + 1]])
    combined = layer(RULES[name](records(values)))
    assert combined.dtype == np.int64
    np.testing.assert_array_equal(combined, [4, 11, 2**40 + 1])
    # Half of an odd sum goes to the even neighbour.
    np.testing.assert_array_equal(layer(median(records(np.array([[1, 2], [2, 3]])))), [2, 2])


def test_half_precision_is_combined_in_single() -> None:
    values = normal(5, 6, 100)
    halves = values.astype(np.float16)
    combined = layer(median(records(halves)))
    assert combined.dtype == np.float32
    np.testing.assert_array_equal(combined, layer(median(records(halves.astype(np.float32)))))


def test_precisions_may_differ_and_the_first_is_returned() -> None:
    values = normal(6, 3, 100).astype(np.float64) + 1e-10
    rows = [row.astype(dtype) for row, dtype in zip(values, ("f4", "f8", "f2"), strict=True)]
    combined = layer(median([{"w": torch.from_numpy(row)} for row in rows]))
    assert combined.dtype == np.float32
    np.testing.assert_array_equal(combined, np.median(np.stack(rows, dtype=np.float64), axis=0).astype("f4"))


@pytest.mark.parametrize("name", RULES)
def test_every_layer_keeps_name_and_shape_and_the_models_are_emptied(name: str) -> None:
    models = [{"a": torch.full((2, 3), k), "b": torch.tensor(2.0 * k), "c": torch.zeros(0)} for k in range(5)]
    combined = RULES[name](models)
    assert [(key, value.shape) for key, value in combined.items()] == [("a", (2, 3)), ("b", ()), ("c", (0,))]
    assert float(combined["b"]) == 4
    assert models == [{}] * 5


def test_numbers_that_leave_nothing_are_refused() -> None:
    for cut in (-1, 2):
        with pytest.raises(ValueError, match=f"cut = {cut}: must be >= 0 and less than half of 4 models"):
            trimmed_mean(records(normal(0, 4, 2)), cut)
    for count in (0, 5):
        with pytest.raises(ValueError, match=f"count = {count}: must be >= 1 and at most 4"):
            mean_around_median(records(normal(0, 4, 2)), count)
