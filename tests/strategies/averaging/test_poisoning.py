"""A small real federation under attack: the robust strategies still learn."""

from __future__ import annotations

from functools import cache

import pytest

from experiments.poisoning import SETTINGS, federated_loss
from fedsynth.config import Scalar

SMALL: dict[str, Scalar] = {
    **SETTINGS,
    "block-out-channels": "8,8",
    "learning-rate": 3e-3,
    "num-rounds": 2,
    "train-steps": 20,
}
PAIRS = [("fedmedian", "nan"), ("krum", "noise"), ("multikrum", "sign-flip x10")]
"""Every attack once; tests/long has all pairs."""


@cache
def loss(strategy: str, attack: str) -> float:
    return federated_loss(strategy, attack, SMALL)


@pytest.mark.parametrize(("strategy", "attack"), PAIRS)
def test_robust_strategies_learn_with_two_of_ten_hostile_silos(strategy: str, attack: str) -> None:
    clean = loss(strategy, "clean")
    # A network that predicts no noise at all has a loss of 1.
    assert clean < 0.6
    assert loss(strategy, attack) <= 1.2 * clean


def test_averaging_is_spoilt_by_numbers_that_pass_every_check() -> None:
    clean = loss("fedavg", "clean")
    assert clean < 0.6
    assert loss("fedavg", "sign-flip x10") > 1.5 * clean
    assert loss("fedavg", "nan") <= 1.2 * clean
