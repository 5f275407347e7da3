from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hand_made_models import BUFFER, assert_equal, assert_near, counts_of, exact, model, play, round_of

from strategies import STRATEGIES
from strategies.averaging.fedavg import FedAvg
from strategies.averaging.robust import FedMedian, FedTrimmedAvg

ROBUST: dict[str, dict[str, Any]] = {
    "fedmedian": {},
    "fedtrimmedavg": {"beta": 0.2},
    "krum": {"num_malicious_nodes": 2},
    "multikrum": {"num_malicious_nodes": 2},
    "bulyan": {"num_malicious_nodes": 2},
}


@pytest.mark.parametrize(("n", "beta", "cut"), [(9, 0.2, 1), (100, 0.29, 29), (3, 0.33, 0)])
def test_trimmed_mean_agrees_with_numpy(n: int, beta: float, cut: int) -> None:
    models = round_of(1, n)
    weights = play(FedTrimmedAvg(beta=beta), 1, model(0), models, counts_of(n))
    # Yin et al. 2018, Definition 2: the mean without the smallest and as many of the largest.
    kept = {name: np.sort([exact(one)[name] for one in models], axis=0)[cut : n - cut] for name in weights}
    assert_near(weights, {name: values.mean(axis=0) for name, values in kept.items()})


def test_median_and_nearly_half_trimmed_are_the_same_and_nothing_trimmed_is_the_plain_mean() -> None:
    models = round_of(1, 9)
    median = play(FedMedian(), 1, model(0), models, counts_of(9))
    assert_equal(play(FedTrimmedAvg(beta=0.49), 1, model(0), models, counts_of(9)), median)
    untrimmed = play(FedTrimmedAvg(beta=0.0), 1, model(0), models, counts_of(9))
    assert_near(untrimmed, exact(play(FedAvg(), 1, model(0), models, [5] * 9)), rtol=2e-7)


@pytest.mark.parametrize("name", ROBUST)
def test_hostile_silos_cannot_leave_the_range_of_the_others(name: str) -> None:
    """Two silos that agree on weights far away, among eleven."""
    honest = round_of(1, 9)
    hostile = [{layer: value + 9e5 if layer != BUFFER else value for layer, value in model(0).items()}] * 2
    found = play(STRATEGIES[name](**ROBUST[name]), 1, model(0), [*hostile, *honest], [10**6] * 2 + [1] * 9)
    for layer, value in found.items():
        stacked = torch.stack([weights[layer] for weights in honest])
        # The mean of many may round outwards by a unit in the last place.
        slack = 1e-7 if value.is_floating_point() else 1
        assert ((value >= stacked.amin(0) - slack) & (value <= stacked.amax(0) + slack)).all(), layer


@pytest.mark.parametrize("name", ROBUST)
def test_numbers_of_images_buy_nothing(name: str) -> None:
    counts: list[list[int]] = [[1] * 11, [*[1] * 10, 10**6]]
    assert_equal(*(play(STRATEGIES[name](**ROBUST[name]), 1, model(0), round_of(1, 11), given) for given in counts))
