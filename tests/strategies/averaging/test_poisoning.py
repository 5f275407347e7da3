"""A small real federation under attack; tests/long has every robust strategy under every attack."""

from __future__ import annotations

from functools import cache

import pytest

from experiments.poisoning import SETTINGS, federated_loss
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


@pytest.mark.parametrize(
    ("recipe", "strategy", "attack"),
    [
        ("paper", "fedavg", "nan"),
        ("paper", "multikrum", "noise"),
        ("paper", "multikrum", "sign-flip x10"),
        ("default", "multikrum", "sign-flip x10"),
    ],
)
def test_learns_with_two_of_ten_hostile_silos(recipe: str, strategy: str, attack: str) -> None:
    assert loss(recipe, strategy, "clean") < LEARNT[recipe]
    assert loss(recipe, strategy, attack) <= 1.2 * loss(recipe, strategy, "clean")


def test_averaging_is_spoilt_by_numbers_that_pass_every_check() -> None:
    assert loss("paper", "fedavg", "sign-flip x10") > 1.5 * loss("paper", "fedavg", "clean")
