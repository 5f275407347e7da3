"""The arithmetic of recipes: what an error costs under every prediction and weighting, and how the rate goes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.optim import Adam, AdamW

from fedsynth.config import RECIPES, Recipe
from fedsynth.diffusion.recipe import denoising_loss, learning_rate, loss_of_zero, make_optimizer

PREDICTIONS = ("epsilon", "v", "x0")
ALPHA_BARS = torch.tensor([1e-4, 0.02, 0.5, 0.79, 0.81, 0.97, 0.9999], dtype=torch.float64)
"""SNR + 1 = 1/(1-ᾱ): 1, 1.02, 2, 4.76, 5.26, 33 and 10,000."""


def recipe(**changes: Any) -> Recipe:
    return RECIPES["default"].model_copy(update=changes)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def as_predicted(clean: torch.Tensor, x: torch.Tensor, prediction: str) -> torch.Tensor:
    """What a network of a kind says that takes ``clean`` for the image under ``x``."""
    signal, noise_std = (root[:, None, None, None] for root in (ALPHA_BARS.sqrt(), (1 - ALPHA_BARS).sqrt()))
    noise = (x - signal * clean) / noise_std
    return {"epsilon": noise, "v": signal * noise - noise_std * clean, "x0": clean}[prediction]


def losses_of(prediction: str, error: torch.Tensor, **changes: Any) -> torch.Tensor:
    """Losses of a network that is wrong by ``error`` about x_0."""
    clean, noise = random(7, 3, 4, 4), random(7, 3, 4, 4, seed=1)
    x = ALPHA_BARS.sqrt()[:, None, None, None] * clean + (1 - ALPHA_BARS).sqrt()[:, None, None, None] * noise
    said = as_predicted(clean + error, x, prediction)
    return denoising_loss(said, clean, noise, ALPHA_BARS, recipe(prediction=prediction, **changes))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("gamma", [1.0, 5.0, 20.0])
def test_min_snr_costs_an_error_of_the_image_by_the_signal_to_noise_ratio(prediction: str, gamma: float) -> None:
    """The same for v and x_0; for ε as in Hang et al. 2023, Eq. 5."""
    error = 0.1 * random(7, 3, 4, 4, seed=2)
    found = losses_of(prediction, error, loss_weighting="min-snr", snr_gamma=gamma)
    more = 0 if prediction == "epsilon" else 1
    weights = [min(float(alpha_bar / (1 - alpha_bar)) + more, gamma) for alpha_bar in ALPHA_BARS]
    expected = error.square().mean((1, 2, 3)) * torch.tensor(weights, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


def test_weight_of_an_error_is_cut_off_at_gamma_and_is_v_s_own_below() -> None:
    error = torch.full((7, 3, 4, 4), 0.3, dtype=torch.float64)
    unbound = losses_of("v", error, loss_weighting="uniform")
    torch.testing.assert_close(losses_of("x0", error, loss_weighting="min-snr", snr_gamma=1e9), unbound)
    cut = losses_of("v", error, loss_weighting="min-snr", snr_gamma=5.0)
    torch.testing.assert_close(cut[:4], unbound[:4])
    torch.testing.assert_close(cut[4:], torch.full((3,), 5 * 0.09, dtype=torch.float64))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_uniform_is_the_mean_square_error_of_what_is_predicted(prediction: str) -> None:
    clean, noise, said = random(7, 3, 4, 4), random(7, 3, 4, 4, seed=1), random(7, 3, 4, 4, seed=3)
    target = {"epsilon": noise, "x0": clean}.get(prediction)
    if target is None:
        angle = torch.acos(ALPHA_BARS.sqrt())[:, None, None, None]
        target = torch.cos(angle) * noise - torch.sin(angle) * clean  # Salimans & Ho 2022, App. D
    found = denoising_loss(said, clean, noise, ALPHA_BARS, recipe(prediction=prediction, loss_weighting="uniform"))
    torch.testing.assert_close(found, ((said - target) ** 2).mean((1, 2, 3)), rtol=1e-12, atol=0)


def test_min_snr_never_makes_an_error_of_noise_count_more_than_it_does_by_itself() -> None:
    clean, noise, said = (random(7, 1, 2, 2, seed=seed) for seed in range(3))
    chosen = recipe(prediction="epsilon", loss_weighting="min-snr", snr_gamma=5.0)
    near_noise = torch.logspace(-9, -1, 7, dtype=torch.float64)
    plain = (said - noise).square().mean((1, 2, 3))
    torch.testing.assert_close(denoising_loss(said, clean, noise, near_noise, chosen), plain)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("weighting", ["uniform", "min-snr"])
def test_a_network_that_is_right_costs_nothing(prediction: str, weighting: str) -> None:
    found = losses_of(prediction, torch.zeros(7, 3, 4, 4, dtype=torch.float64), loss_weighting=weighting)
    torch.testing.assert_close(found, torch.zeros(7, dtype=torch.float64), rtol=0, atol=1e-18)


def test_beyond_black_and_white_a_predicted_image_costs_nothing() -> None:
    """As if what a network says were clipped there, but with a way back from the wrong side."""
    clean = torch.tensor([-1.0, -1.0, -1.0, 1.0, 1.0, 0.9, -0.9, 1.0]).double().reshape(1, 1, 2, 4)
    said = torch.tensor([-1.5, -0.8, 1.5, 1.2, 0.9, 1.3, -0.7, -2.0]).double().reshape(1, 1, 2, 4).requires_grad_()
    chosen = recipe(prediction="x0", loss_weighting="uniform")
    loss = denoising_loss(said, clean, torch.zeros_like(clean), ALPHA_BARS[:1], chosen)
    by_hand = [0, 0.2**2, 2.5**2, 0, 0.1**2, 0.4**2, 0.2**2, 3**2]
    assert float(loss.detach()) == pytest.approx(sum(by_hand) / 8, rel=1e-7)
    loss.sum().backward()
    assert said.grad is not None
    expected = [0, 0.2, 2.5, 0, -0.1, 0.4, 0.2, -3]
    assert said.grad.flatten().tolist() == pytest.approx([2 * error / 8 for error in expected], abs=1e-7)


class TestLearningRate:
    def test_rises_over_the_warm_up_and_falls_as_half_a_cosine(self) -> None:
        chosen = recipe(learning_rate=0.3, warmup_steps=2, learning_rate_decay="cosine")
        found = [learning_rate(chosen, step, 8) for step in range(10)]
        cosines = [(1 + math.cos(math.pi * step / 8)) / 2 for step in (0, 1, 2, 3, 4, 5, 6, 7, 7, 7)]
        rises = [1 / 3, 2 / 3, *[1.0] * 8]
        assert found == pytest.approx([0.3 * rise * cosine for rise, cosine in zip(rises, cosines, strict=True)])
        assert found[4] == pytest.approx(0.15)
        # The mean is half of the highest rate, but for the warm-up.
        assert sum(learning_rate(chosen, step, 1000) for step in range(1000)) == pytest.approx(0.15 * 1000, rel=3e-3)

    def test_constant_after_the_warm_up(self) -> None:
        chosen = recipe(learning_rate=0.3, warmup_steps=3, learning_rate_decay="constant")
        assert [learning_rate(chosen, step, 100) for step in (0, 1, 2, 3, 4, 99, 500)] == pytest.approx(
            [0.075, 0.15, 0.225, 0.3, 0.3, 0.3, 0.3]
        )
        paper = RECIPES["paper"]
        assert {learning_rate(paper, step, 10) for step in range(12)} == {2e-4}

    @pytest.mark.parametrize(("total", "first", "full"), [(1, 1.0, 0), (3, 1.0, 0), (4, 0.5, 1), (40, 1 / 11, 10)])
    def test_a_short_training_warms_up_for_a_quarter_of_it(self, total: int, first: float, full: int) -> None:
        chosen = recipe(learning_rate=1.0, warmup_steps=20, learning_rate_decay="constant")
        assert learning_rate(chosen, 0, total) == pytest.approx(first)
        assert learning_rate(chosen, full, total) == 1.0
        assert full == 0 or learning_rate(chosen, full - 1, total) < 1.0

    @pytest.mark.parametrize("total", [1, 2, 900])
    def test_no_step_is_lost(self, total: int) -> None:
        for name, chosen in RECIPES.items():
            assert all(learning_rate(chosen, step, total) > 0 for step in range(2 * total)), name


@pytest.mark.parametrize(("name", "kind", "decay"), [("adam", Adam, 0.0), ("adamw", AdamW, 0.01)])
def test_optimisers(name: str, kind: type, decay: float) -> None:
    weight = torch.nn.Parameter(torch.tensor([2.0]))
    optimizer = make_optimizer([weight], recipe(optimizer=name, learning_rate=0.1))
    assert type(optimizer) is kind
    weight.grad = torch.tensor([5.0])
    optimizer.step()
    # The first step of both is the rate long; AdamW shrinks the weight before.
    assert float(weight.detach()) == pytest.approx(2 * (1 - 0.1 * decay) - 0.1, abs=1e-6)


@pytest.mark.parametrize("weighting", ["uniform", "min-snr"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_loss_of_answering_nothing_is_the_mean_over_levels_noise_and_images(prediction: str, weighting: str) -> None:
    chosen = recipe(prediction=prediction, loss_weighting=weighting)
    alpha_bars = torch.tensor([0.02, 0.5, 0.97], dtype=torch.float64)
    clean, noise = 0.6 * random(3, 1, 200, 200).sign(), random(3, 1, 200, 200, seed=1)
    by_hand = denoising_loss(torch.zeros_like(clean), clean, noise, alpha_bars, chosen).mean()
    assert loss_of_zero(alpha_bars, 0.36, chosen) == pytest.approx(float(by_hand), rel=0.02)
