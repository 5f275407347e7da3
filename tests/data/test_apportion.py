from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from fedsynth.data.apportion import apportion


def by_hand(total: int, weights: list[Any]) -> list[int]:
    """Largest remainders in fractions; of equal ones the first."""
    exact = [total * Fraction(weight) / sum(map(Fraction, weights)) for weight in weights]
    parts = [math.floor(share) for share in exact]
    for k in sorted(range(len(weights)), key=lambda k: (parts[k] - exact[k], k))[: total - sum(parts)]:
        parts[k] += 1
    return parts


@pytest.mark.parametrize(
    ("total", "weights", "expected"),
    [
        (10, [47, 30, 23], [5, 3, 2]),  # exact shares 4.7, 3.0, 2.3
        (116, [1, 17, 58], [2, 26, 88]),  # 1.526, 25.947, 88.526: equal remainders, which floats tell apart
        (6, [[2, 0], [1, 1]], [[3, 0], [2, 1]]),
        (1000, [10**15] * 3, [334, 333, 333]),
        (10**6, [2**62, 2**62], [500_000, 500_000]),
        (3, [0.5, 0.25, 0.0], [2, 1, 0]),
    ],
)
def test_largest_remainders(total: int, weights: list[Any], expected: list[Any]) -> None:
    found = apportion(total, np.array(weights))
    assert found.dtype == np.int64
    assert found.tolist() == expected


def test_whole_and_broken_weights_agree_with_fractions() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        counts, total = rng.integers(0, 60, rng.integers(1, 40)), int(rng.integers(0, 500))
        counts[0] += 1
        for weights in (counts, rng.lognormal(0, 2, 20)):
            assert apportion(total, weights).tolist() == by_hand(total, weights.tolist())
