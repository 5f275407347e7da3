"""A small real federation under attack; tests/long has every robust strategy under every attack."""

from __future__ import annotations

from functools import cache

import pytest

from experiments.poisoning import SETTINGS, federated_loss
from fedsynth.config import Scalar

SMALL: dict[str, Scalar] = {
    **SETTINGS,
    "block-out-channels": "8,8",
    "recipe": "paper",
    "learning-rate": 3e-3,
    "num-rounds": 2,
    "train-steps": 20,
}


@cache
def loss(strategy: str, attack: str) -> float:
    return federated_loss(strategy, attack, SMALL)


@pytest.mark.parametrize(("strategy", "attack"), [("fedavg", "nan"), ("multikrum", "sign-flip x10")])
def test_learns_with_two_of_ten_hostile_silos(strategy: str, attack: str) -> None:
    # A network that predicts no noise at all has a loss of 1.
    assert loss(strategy, "clean") < 0.6
    assert loss(strategy, attack) <= 1.2 * loss(strategy, "clean")


def test_averaging_is_spoilt_by_numbers_that_pass_every_check() -> None:
    assert loss("fedavg", "sign-flip x10") > 1.5 * loss("fedavg", "clean")
