from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hand_made_models import BUFFER, Exact, Model, assert_near, exact, mean_of, model, near, play
from numpy.typing import NDArray

from fedsynth.errors import UserError
from strategies.averaging.fedavg import FedAvg
from strategies.averaging.server_optimizers import FedAdagrad, FedAdam, FedAvgM, FedYogi, ServerOptimizer

Values = NDArray[np.float64]
Step = Callable[[Values, dict[str, Values], dict[str, float]], Values]
"""(Δ, moments of the layer, hyper-parameters) -> what is added to the weights."""

COUNTS = [7, 1, 432, 60]


def momentum(delta: Values, kept: dict[str, Values], hyper: dict[str, float]) -> Values:
    """Hsu et al. 2019, Section 4.3: v ← βv + Δ, w ← w + ηv."""
    kept["v"] = hyper["server_momentum"] * kept["v"] + delta
    return hyper["server_learning_rate"] * kept["v"]


def adagrad(delta: Values, kept: dict[str, Values], hyper: dict[str, float]) -> Values:
    """Reddi et al. 2021, Algorithm 2 with β₁ = 0: v ← v + Δ², v_0 = τ²."""
    kept["v"] = kept["v"] + delta**2
    return hyper["eta"] * delta / (np.sqrt(kept["v"]) + hyper["tau"])


def adam(delta: Values, kept: dict[str, Values], hyper: dict[str, float]) -> Values:
    """The same, Option Adam: m ← β₁m + (1 - β₁)Δ, v ← β₂v + (1 - β₂)Δ², no bias correction."""
    kept["m"] = hyper["beta_1"] * kept["m"] + (1 - hyper["beta_1"]) * delta
    kept["v"] = hyper["beta_2"] * kept["v"] + (1 - hyper["beta_2"]) * delta**2
    return hyper["eta"] * kept["m"] / (np.sqrt(kept["v"]) + hyper["tau"])


def yogi(delta: Values, kept: dict[str, Values], hyper: dict[str, float]) -> Values:
    """The same, Option Yogi: v ← v - (1 - β₂)Δ² sign(v - Δ²)."""
    kept["m"] = hyper["beta_1"] * kept["m"] + (1 - hyper["beta_1"]) * delta
    kept["v"] = kept["v"] - (1 - hyper["beta_2"]) * delta**2 * np.sign(kept["v"] - delta**2)
    return hyper["eta"] * kept["m"] / (np.sqrt(kept["v"]) + hyper["tau"])


ADAPTIVE = {"eta": 1e-2, "tau": 1e-3}
BETAS = {"beta_1": 0.4, "beta_2": 0.9}
CASES: dict[str, tuple[type[ServerOptimizer], Step, dict[str, float]]] = {
    "fedavgm": (FedAvgM, momentum, {"server_momentum": 0.35, "server_learning_rate": 0.2}),
    "fedadagrad": (FedAdagrad, adagrad, ADAPTIVE),
    "fedadam": (FedAdam, adam, {**ADAPTIVE, **BETAS}),
    "fedyogi": (FedYogi, yogi, {**ADAPTIVE, **BETAS}),
}


def replies_of(number: int) -> list[Model]:
    """Four silos' weights in a round: near the same start in all rounds, so that moments fall as well as rise."""
    return [near(model(0), 100 * number + k, 0.03 if number <= 2 else 0.001) for k in range(4)]


def by_hand(step: Step, hyper: dict[str, float]) -> Iterator[tuple[Exact, dict[str, dict[str, Values]]]]:
    """Weights, kept in float64 throughout, and moments after each of six rounds."""
    weights, start = exact(model(0)), hyper.get("tau", 0.0) ** 2
    moments = {name: {"m": 0 * value, "v": np.full_like(value, start)} for name, value in weights.items()}
    for number in range(1, 7):
        mean = mean_of(replies_of(number), COUNTS)
        moved = {name: old + step(mean[name] - old, moments[name], hyper) for name, old in weights.items()}
        weights = moved | {BUFFER: np.round(mean[BUFFER])}
        yield weights, {name: dict(kept) for name, kept in moments.items()}


@pytest.mark.parametrize("case", CASES)
def test_six_rounds_agree_with_the_paper_in_float64(case: str) -> None:
    chosen, step, hyper = CASES[case]
    strategy, weights = chosen(**hyper), model(0)
    for number, (expected, _) in enumerate(by_hand(step, hyper), start=1):
        weights = play(strategy, number, weights, replies_of(number), COUNTS)
        assert_near(weights, expected)


def test_the_rounds_see_both_signs_of_yogi() -> None:
    """Otherwise the comparison would not tell Yogi's rule from a sum or a difference."""
    second = [moments["conv_in.weight"]["v"] for _, moments in by_hand(*CASES["fedyogi"][1:])]
    assert (second[1] > second[0]).any()
    assert (second[5] < second[2]).any()
    assert (second[5] > 0).all()


def test_first_round_of_fedavgm_with_a_whole_step_is_fedavg_and_without_momentum_it_is_refused() -> None:
    averaged = play(FedAvg(), 1, model(0), replies_of(1), COUNTS)
    moved = play(FedAvgM(), 1, model(0), replies_of(1), COUNTS)
    assert_near(moved, exact(averaged), rtol=2e-7)
    with pytest.raises(UserError, match="server-momentum = 0 with server-learning-rate = 1 is FedAvg"):
        FedAvgM(server_momentum=0.0, server_learning_rate=1.0)


def test_updates_of_one_unit_in_the_last_place_are_felt() -> None:
    """A mean of weights, rounded to single precision before the difference is taken, would lose them."""
    strategy, ulp = FedAvgM(), 2.0**-23
    models = [{"w": torch.full((4,), 1 + ulp)}, {"w": torch.full((4,), 1 - ulp)}]
    play(strategy, 1, {"w": torch.ones(4)}, models, [3, 1])
    np.testing.assert_allclose(strategy.state_dict()["moments"]["momentum"]["w"], ulp / 2, rtol=1e-12)
