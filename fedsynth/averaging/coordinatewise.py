"""Robust averages of models, one coordinate at a time.

All are exact: they sort the values of each coordinate, so that the order of the models makes no difference, and take
means in float64. Models are emptied and dtypes kept as by :func:`~fedsynth.averaging.layers.combine_layers`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedsynth.averaging.layers import Layers, chunk_length, combine_layers, fill

Exchange = tuple[int, int, bool, bool]
"""Two row indices; whether the smaller value is needed in the first row, and the larger one in the second."""

_LARGEST_NETWORK = 100
"""Models; for more, sorting each coordinate on its own takes less time than exchanging whole rows (half for 200)."""


def median(models: Sequence[Layers]) -> Layers:
    """Coordinate-wise median (Yin et al. 2018, arXiv 1803.01498, Definition 1).

    Args:
        models: one each, K >= 1, finite; emptied on return.

    Returns:
        The median model; with an even K the mean of the middle pair.
    """
    return trimmed_mean(models, (len(models) - 1) // 2)


def trimmed_mean(models: Sequence[Layers], cut: int) -> Layers:
    """Coordinate-wise trimmed mean (Yin et al. 2018, arXiv 1803.01498, Definition 2).

    Args:
        models: one each, finite; emptied on return.
        cut: smallest and as many largest values of each coordinate to leave out, 0 <= 2 * cut < K.

    Returns:
        The plain mean of the other values.

    Raises:
        ValueError: ``cut`` out of range.
    """
    number = len(models)
    if not 0 <= 2 * cut < number:
        raise ValueError(f"cut = {cut}: must be >= 0 and less than half of {number} models")
    sort = _Sorter(number, range(cut, number - cut))
    return combine_layers(models, lambda values: _mean(sort(values)[cut : number - cut]))


def mean_around_median(models: Sequence[Layers], count: int) -> Layers:
    """Mean of the values nearest to the coordinate-wise median (El Mhamdi et al. 2018, arXiv 1802.07927, Section 4).

    Bulyan's second step. Of two values equally near to the median the smaller one is kept.

    Args:
        models: one each, finite; emptied on return.
        count: values to keep of each coordinate, 1 <= count <= K.

    Returns:
        The plain mean of the kept values.

    Raises:
        ValueError: ``count`` out of range.
    """
    number = len(models)
    if not 1 <= count <= number:
        raise ValueError(f"count = {count}: must be >= 1 and at most {number}, the number of models")
    sort = _Sorter(number, range(number))
    return combine_layers(models, lambda values: _mean(_nearest_to_median(sort(values), count)))


def _nearest_to_median(ascending: list[NDArray[Any]], count: int) -> list[NDArray[Any]]:
    """Reduce sorted values, which are overwritten, to the ``count`` nearest to their median.

    These are neighbours. Starting from the ``count`` smallest, the smallest gives way to the next larger one while
    that is nearer: m - x_low > x_high - m, that is x_low + x_high < 2m. No difference is taken, so none is rounded.
    """
    number = len(ascending)
    twice_median = np.add(ascending[(number - 1) // 2], ascending[number // 2], dtype=np.float64)
    for low in range(number - count):
        nearer = np.add(ascending[low], ascending[low + count], dtype=np.float64) < twice_median
        # Where the smallest kept value has given way before, it lies `count` ranks further, in the same row.
        np.copyto(ascending[low % count], ascending[low + count], where=nearer)
    return ascending[:count]


def _mean(rows: Sequence[NDArray[Any]]) -> torch.Tensor:
    summed = torch.zeros(rows[0].shape, dtype=torch.float64)
    for row in rows:
        summed.add_(torch.from_numpy(row))
    return summed.div_(len(rows))


class _Sorter:
    """Sorts the K values of every coordinate; its memory serves all calls.

    Args:
        number: K.
        ranks: which must be right, 0 for the smallest value; the values at other ranks are arbitrary.
    """

    def __init__(self, number: int, ranks: Iterable[int]) -> None:
        self._exchanges = _network(number, tuple(ranks)) if number <= _LARGEST_NETWORK else None
        self._memory = torch.empty((number + 1) * chunk_length(number), dtype=torch.float64)

    def __call__(self, values: Sequence[torch.Tensor]) -> list[NDArray[Any]]:
        """Return K arrays (n,) by rank, of single precision where that is exact; the next call overwrites them."""
        single = all(value.dtype in (torch.float32, torch.float16) for value in values)
        memory = self._memory.view(torch.float32 if single else torch.float64)
        if self._exchanges is None:
            columns = memory[: len(values) * len(values[0])].view(len(values[0]), len(values))
            torch.stack([value.to(memory.dtype) for value in values], 1, out=columns)
            columns.numpy().sort(axis=1)
            return list(columns.numpy().T)
        rows = fill(memory, values)
        spare = memory[rows.numel() :][: len(values[0])]
        return _exchange(list(rows.numpy()), spare.numpy(), self._exchanges)


def _exchange(rows: list[NDArray[Any]], spare: NDArray[Any], exchanges: Iterable[Exchange]) -> list[NDArray[Any]]:
    """Run a network; rows and spare memory are overwritten and swapped."""
    for low, high, smaller, larger in exchanges:
        first, second = rows[low], rows[high]
        if smaller and larger:
            np.minimum(first, second, out=spare)
            np.maximum(first, second, out=second)
            rows[low], spare = spare, first
        elif smaller:
            np.minimum(first, second, out=first)
        else:
            np.maximum(first, second, out=second)
    return rows


@lru_cache
def _network(number: int, ranks: tuple[int, ...]) -> tuple[Exchange, ...]:
    """Batcher's odd-even merge sort (1968) for ``number`` values, without what the ranks do not depend on."""
    needed = set(ranks)
    exchanges: list[Exchange] = []
    for low, high in reversed(_odd_even_merge_sort(number)):
        if low in needed or high in needed:
            exchanges.append((low, high, low in needed, high in needed))
            needed |= {low, high}
    return tuple(reversed(exchanges))


def _odd_even_merge_sort(number: int) -> list[tuple[int, int]]:
    """List the pairs of rows to compare, after Knuth, The Art of Computer Programming 3, 5.2.2, Algorithm M."""
    pairs: list[tuple[int, int]] = []
    run = 1
    while run < number:
        distance = run
        while distance >= 1:
            starts = range(distance % run, number - distance, 2 * distance)
            lows = (low for start in starts for low in range(start, min(start + distance, number - distance)))
            # Only what lies in the same pair of runs is merged.
            pairs += [(low, low + distance) for low in lows if low // (2 * run) == (low + distance) // (2 * run)]
            distance //= 2
        run *= 2
    return pairs
