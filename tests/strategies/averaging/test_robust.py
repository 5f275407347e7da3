from __future__ import annotations

import numpy as np
import pytest
import torch
from hand_made_models import BUFFER, Exact, Model, assert_equal, assert_near, exact, model, near, play

from strategies.averaging.base import AveragingStrategy
from strategies.averaging.fedavg import FedAvg
from strategies.averaging.robust import FedMedian, FedTrimmedAvg


def round_of(number: int, n: int) -> list[Model]:
    return [near(model(0), 100 * number + k) for k in range(n)]


def counts_of(n: int) -> list[int]:
    return [1 + 37 * k * k for k in range(n)]


def trimmed_mean_by_hand(models: list[Model], cut: int) -> Exact:
    """Yin et al. 2018, Definition 2: the mean without the ``cut`` smallest and the ``cut`` largest."""
    result = {}
    for name in models[0]:
        values = np.sort([exact(weights)[name] for weights in models], axis=0)
        result[name] = values[cut : len(models) - cut].mean(axis=0)
    return result


@pytest.mark.parametrize("n", [1, 4, 5])
def test_median_agrees_with_numpy(n: int) -> None:
    strategy, weights = FedMedian(), model(0)
    for number in (1, 2):
        models = round_of(number, n)
        weights = play(strategy, number, weights, models, counts_of(n))
        # Definition 1; numpy averages the middle pair too.
        assert_near(weights, {name: np.median([exact(one)[name] for one in models], axis=0) for name in weights})


@pytest.mark.parametrize(("n", "beta", "cut"), [(9, 0.2, 1), (10, 0.3, 3), (100, 0.29, 29), (3, 0.33, 0)])
def test_trimmed_mean_agrees_with_numpy(n: int, beta: float, cut: int) -> None:
    strategy, weights = FedTrimmedAvg(beta=beta), model(0)
    for number in (1, 2):
        models = round_of(number, n)
        weights = play(strategy, number, weights, models, counts_of(n))
        assert_near(weights, trimmed_mean_by_hand(models, cut))


def test_median_and_nearly_half_trimmed_are_the_same_and_nothing_trimmed_is_the_plain_mean() -> None:
    models = round_of(1, 9)
    median = play(FedMedian(), 1, model(0), models, counts_of(9))
    assert_equal(play(FedTrimmedAvg(beta=0.49), 1, model(0), models, counts_of(9)), median)
    untrimmed = play(FedTrimmedAvg(beta=0.0), 1, model(0), models, counts_of(9))
    assert_near(untrimmed, exact(play(FedAvg(), 1, model(0), models, [5] * 9)), rtol=2e-7)


@pytest.mark.parametrize("chosen", [FedMedian, FedTrimmedAvg])
def test_hostile_silos_cannot_leave_the_range_of_the_others(chosen: type[AveragingStrategy]) -> None:
    honest = round_of(1, 8)
    hostile = [{name: value + 1e30 if name != BUFFER else value for name, value in model(0).items()}] * 2
    result = play(chosen(), 1, model(0), [*hostile, *honest], [10**6] * 2 + [1] * 8)
    for name, value in result.items():
        stacked = torch.stack([weights[name] for weights in honest])
        slack = 1e-7 if value.is_floating_point() else 1
        assert ((value >= stacked.amin(0) - slack) & (value <= stacked.amax(0) + slack)).all(), name
