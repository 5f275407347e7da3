"""Updates as whole numbers: the sum is the weighted mean up to half a step a silo, and never leaves 32 bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedsynth.privacy.sums import SumError
from fedsynth.privacy.sums.updates import STEPS, check_total_weights, decode_sum, encode_updates, range_of

SHAPES = ((3, 4, 2), (7,), ())


@pytest.mark.parametrize("count", [3, 10])
def test_the_sum_is_the_weighted_mean_up_to_half_a_step_of_each_silo(count: int) -> None:
    draw = torch.Generator().manual_seed(count)
    ranges = (1.0, 64.0, 2.0**-3)
    updates = [
        [0.05 * r * torch.randn(s, generator=draw) for s, r in zip(SHAPES, ranges, strict=True)] for _ in range(count)
    ]
    # Of every layer others: in halves of a network silos weigh differently.
    weights = torch.rand(count, len(SHAPES), generator=draw, dtype=torch.float64)
    weights /= weights.sum(0)
    numbers = sum(
        (encode_updates(u, w, ranges) for u, w in zip(updates, weights.tolist(), strict=True)),
        np.zeros(24 + 7 + 1, np.uint32),
    )
    for k, (layer, size) in enumerate(zip(decode_sum(numbers, SHAPES, ranges), ranges, strict=True)):
        true = sum(weights[i, k] * updates[i][k].double() for i in range(count))
        assert layer.shape == SHAPES[k]
        assert float((layer - true).abs().max()) <= count * size / STEPS / 2


def test_a_thousand_silos_at_the_end_of_the_range_do_not_overflow() -> None:
    count, size = 1000, 4.0
    weight = float(torch.tensor(1 / count))
    for sign in (1, -1):
        # Ten times as much is clamped.
        one = encode_updates([torch.full((1,), sign * 10 * size)], [weight], [size])
        total = np.zeros(1, np.uint32)
        for _ in range(count):
            total += one
        (layer,) = decode_sum(total, [(1,)], [size])
        assert float(layer) == pytest.approx(sign * size, abs=count * size / STEPS / 2 + 1e-6 * size)


@pytest.mark.parametrize(
    ("largest", "size"), [(0.0, 1.0), (0.3, 1.0), (0.5, 1.0), (0.51, 2.0), (3.0, 8.0), (-4.0, 8.0)]
)
def test_a_layer_may_change_by_twice_its_largest_weight_and_by_one(largest: float, size: float) -> None:
    assert range_of(torch.tensor([0.0, largest])) == size


def test_what_cannot_be_summed_is_refused() -> None:
    with pytest.raises(SumError, match="not finite"):
        encode_updates([torch.tensor([1.0, float("nan")])], [0.5], [1.0])
    check_total_weights([[0.5, 0.0], [0.5, 1.0]])
    with pytest.raises(SumError, match=r"group 1: weights add up to 1.200, 1 is the most"):
        check_total_weights([[0.5, 0.4], [0.4, 0.4], [0.1, 0.4]])
