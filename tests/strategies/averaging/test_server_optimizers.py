from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hand_made_models import BUFFER, Model, assert_equal, assert_near, mean_of, model, near, play
from numpy.typing import NDArray

from fedsynth.errors import UserError
from strategies.averaging.fedavg import FedAvg
from strategies.averaging.server_optimizers import FedAdagrad, FedAdam, FedAvgM, FedYogi, ServerOptimizer

Values = NDArray[np.float64]
Step = Callable[[Values, dict[str, Values], dict[str, float]], Values]
"""(Δ, moments of the layer, hyper-parameters) -> what is added to the weights."""

COUNTS = [7, 1, 432, 60]
ROUNDS = 6


def momentum(delta: Values, kept: dict[str, Values], hyper: dict[str, float]) -> Values:
    """Hsu et al. 2019, Section 4.3: v ← βv + Δ, w ← w + ηv."""
    kept["v"] = hyper["server_momentum"] * kept.get("v", np.zeros_like(delta)) + delta
    return hyper["server_learning_rate"] * kept["v"]


def adagrad(delta: Values, kept: dict[str, Values], hyper: dict[str, float]) -> Values:
    """Reddi et al. 2021, Algorithm 2 with β₁ = 0: v ← v + Δ², v_0 = τ²."""
    kept["v"] = kept.get("v", np.full_like(delta, hyper["tau"] ** 2)) + delta**2
    return hyper["eta"] * delta / (np.sqrt(kept["v"]) + hyper["tau"])


def adam(delta: Values, kept: dict[str, Values], hyper: dict[str, float]) -> Values:
    """The same, Option Adam: m ← β₁m + (1 - β₁)Δ, v ← β₂v + (1 - β₂)Δ², no bias correction."""
    v = kept.get("v", np.full_like(delta, hyper["tau"] ** 2))
    kept["m"] = hyper["beta_1"] * kept.get("m", np.zeros_like(delta)) + (1 - hyper["beta_1"]) * delta
    kept["v"] = hyper["beta_2"] * v + (1 - hyper["beta_2"]) * delta**2
    return hyper["eta"] * kept["m"] / (np.sqrt(kept["v"]) + hyper["tau"])


def yogi(delta: Values, kept: dict[str, Values], hyper: dict[str, float]) -> Values:
    """The same, Option Yogi: v ← v - (1 - β₂)Δ² sign(v - Δ²)."""
    v = kept.get("v", np.full_like(delta, hyper["tau"] ** 2))
    kept["m"] = hyper["beta_1"] * kept.get("m", np.zeros_like(delta)) + (1 - hyper["beta_1"]) * delta
    kept["v"] = v - (1 - hyper["beta_2"]) * delta**2 * np.sign(v - delta**2)
    return hyper["eta"] * kept["m"] / (np.sqrt(kept["v"]) + hyper["tau"])


ADAPTIVE = {"eta": 1e-2, "tau": 1e-3}
BETAS = {"beta_1": 0.9, "beta_2": 0.99}
CASES: dict[str, tuple[type[ServerOptimizer], Step, dict[str, float]]] = {
    "fedavgm": (FedAvgM, momentum, {"server_momentum": 0.9, "server_learning_rate": 1.0}),
    "fedavgm, slow": (FedAvgM, momentum, {"server_momentum": 0.35, "server_learning_rate": 0.2}),
    "fedadagrad": (FedAdagrad, adagrad, ADAPTIVE),
    "fedadam": (FedAdam, adam, {**ADAPTIVE, **BETAS}),
    "fedadam, forgetful": (FedAdam, adam, {"eta": 0.03, "tau": 1e-2, "beta_1": 0.0, "beta_2": 0.2}),
    "fedyogi": (FedYogi, yogi, {**ADAPTIVE, **BETAS}),
    "fedyogi, forgetful": (FedYogi, yogi, {"eta": 0.03, "tau": 1e-2, "beta_1": 0.4, "beta_2": 0.5}),
}
CLASSES = [FedAvgM, FedAdagrad, FedAdam, FedYogi]


def replies_of(number: int, drift: float = 0.01) -> list[Model]:
    """Four silos' weights in a round: near the same start in all rounds, so that moments fall as well as rise."""
    shrinking = drift * (3.0 if number <= 2 else 0.1)
    return [near(model(0), 100 * number + k, shrinking) for k in range(4)]


def by_hand(step: Step, hyper: dict[str, float], rounds: int) -> tuple[list[dict[str, Values]], dict[str, Any]]:
    """Weights after every round, kept in float64 throughout, and the moments at the end."""
    weights = {name: value.numpy().astype(np.float64) for name, value in model(0).items()}
    moments: dict[str, dict[str, Values]] = {name: {} for name in weights}
    history = []
    for number in range(1, rounds + 1):
        mean = mean_of(replies_of(number), COUNTS)
        for name, old in weights.items():
            moved = old + step(mean[name] - old, moments[name], hyper) if name != BUFFER else np.round(mean[name])
            weights = {**weights, name: moved}
        history.append(weights)
    return history, moments


@pytest.mark.parametrize("case", CASES)
def test_six_rounds_agree_with_the_paper_in_float64(case: str) -> None:
    chosen, step, hyper = CASES[case]
    strategy, weights = chosen(**hyper), model(0)
    history, _ = by_hand(step, hyper, ROUNDS)
    for number, expected in enumerate(history, start=1):
        weights = play(strategy, number, weights, replies_of(number), COUNTS)
        assert_near(weights, expected)


def test_the_rounds_see_both_signs_of_yogi() -> None:
    """Otherwise the comparison would not tell Yogi's rule from a sum or a difference."""
    second = {number: by_hand(yogi, CASES["fedyogi"][2], number)[1]["conv_in.weight"]["v"] for number in (1, 2, 3, 6)}
    assert (second[2] > second[1]).any()
    assert (second[6] < second[3]).any()
    assert (second[6] > 0).all()


@pytest.mark.parametrize("chosen", [FedAdam, FedYogi, FedAdagrad])
def test_first_step_has_no_bias_correction_and_starts_from_tau_squared(chosen: type[ServerOptimizer]) -> None:
    delta = np.array([5e-4, -2e-3, 0.5])
    moved = play(chosen(), 1, {"w": torch.zeros(3)}, [{"w": torch.tensor(delta).float()}] * 2, [3, 9])["w"].numpy()
    first = delta if chosen is FedAdagrad else 0.1 * delta
    second = {
        FedAdagrad: 1e-6 + delta**2,
        FedAdam: 0.99 * 1e-6 + 0.01 * delta**2,
        FedYogi: 1e-6 + 0.01 * delta**2 * [-1, 1, 1],
    }
    np.testing.assert_allclose(moved, 1e-2 * first / (np.sqrt(second[chosen]) + 1e-3), rtol=1e-6)


def test_momentum_goes_on_where_the_silos_stand_still() -> None:
    strategy, start = FedAvgM(server_momentum=0.5, server_learning_rate=1.0), {"w": torch.zeros(2)}
    first = play(strategy, 1, start, [{"w": torch.ones(2)}], [1])
    second = play(strategy, 2, first, [first], [1])
    third = play(strategy, 3, second, [second], [1])
    assert [weights["w"].tolist() for weights in (first, second, third)] == [[1, 1], [1.5, 1.5], [1.75, 1.75]]


def test_fedavgm_that_would_be_fedavg_is_refused() -> None:
    with pytest.raises(UserError, match="server-momentum = 0 with server-learning-rate = 1 is FedAvg"):
        FedAvgM(server_momentum=0.0, server_learning_rate=1.0)


def test_first_round_of_fedavgm_with_a_whole_step_is_fedavg() -> None:
    averaged = play(FedAvg(), 1, model(0), replies_of(1), COUNTS)
    moved = play(FedAvgM(), 1, model(0), replies_of(1), COUNTS)
    assert_near(moved, {name: value.numpy().astype(np.float64) for name, value in averaged.items()}, rtol=2e-7)


@pytest.mark.parametrize(("chosen", "moment"), [(FedAvgM, "momentum"), (FedAdam, "first"), (FedYogi, "first")])
def test_updates_of_one_unit_in_the_last_place_are_felt(chosen: type[ServerOptimizer], moment: str) -> None:
    """A mean of weights, rounded to single precision before the difference is taken, would lose them."""
    strategy, ulp = chosen(), 2.0**-23
    models = [{"w": torch.full((4,), 1 + ulp)}, {"w": torch.full((4,), 1 - ulp)}]
    play(strategy, 1, {"w": torch.ones(4)}, models, [3, 1])
    scale = 1.0 if chosen is FedAvgM else 0.1
    np.testing.assert_allclose(strategy.state_dict()["moments"][moment]["w"], scale * ulp / 2, rtol=1e-12)


@pytest.mark.parametrize("chosen", CLASSES)
def test_moments_survive_a_stop_bit_for_bit(chosen: type[ServerOptimizer]) -> None:
    whole, stopped = chosen(), chosen()
    weights = resumed = model(0)
    for number in (1, 2, 3):
        weights = play(whole, number, weights, replies_of(number), COUNTS)
        resumed = play(stopped, number, resumed, replies_of(number), COUNTS)
        file = io.BytesIO()
        torch.save(stopped.state_dict(), file)
        file.seek(0)
        stopped = chosen()
        stopped.load_state_dict(torch.load(file, weights_only=True))
    assert_equal(resumed, weights)
