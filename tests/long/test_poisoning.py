"""Every robust strategy under every attack, in a small real federation."""

from __future__ import annotations

from functools import cache

import pytest

from experiments.poisoning import ATTACKS, SETTINGS, STRATEGIES, federated_loss
from fedsynth.config import Scalar

SMALL: dict[str, Scalar] = {
    **SETTINGS,
    "block-out-channels": "8,8",
    "num-rounds": 2,
    "train-steps": 20,
}


RECIPES: dict[str, dict[str, Scalar]] = {
    "default": {"learning-rate": 1.5e-3},
    "paper": {"learning-rate": 3e-3},
}
LEARNT = {"default": 1.0, "paper": 0.6}
"""Loss below which something was learnt: grey images, or no noise at all, have 1.9 and 1."""


@cache
def loss(recipe: str, strategy: str, attack: str) -> float:
    return federated_loss(strategy, attack, {**SMALL, "recipe": recipe, **RECIPES[recipe]})


@pytest.mark.parametrize("attack", [name for name in ATTACKS if name != "clean"])
@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "fedavg"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_robust_strategies_learn_with_two_of_ten_hostile_silos(recipe: str, strategy: str, attack: str) -> None:
    assert loss(recipe, strategy, "clean") < LEARNT[recipe]
    assert loss(recipe, strategy, attack) <= 1.2 * loss(recipe, strategy, "clean")
