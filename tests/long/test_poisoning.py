"""Every robust strategy under every attack, in a small real federation."""

from __future__ import annotations

from functools import cache

import pytest

from experiments.poisoning import ATTACKS, SETTINGS, STRATEGIES, federated_loss
from fedsynth.config import Scalar

SMALL: dict[str, Scalar] = {
    **SETTINGS,
    "block-out-channels": "8,8",
    "learning-rate": 3e-3,
    "num-rounds": 2,
    "train-steps": 20,
}


@cache
def loss(strategy: str, attack: str) -> float:
    return federated_loss(strategy, attack, SMALL)


@pytest.mark.parametrize("attack", [name for name in ATTACKS if name != "clean"])
@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "fedavg"])
def test_robust_strategies_learn_with_two_of_ten_hostile_silos(strategy: str, attack: str) -> None:
    # A network that predicts no noise at all has a loss of 1.
    assert loss(strategy, "clean") < 0.6
    assert loss(strategy, attack) <= 1.2 * loss(strategy, "clean")
