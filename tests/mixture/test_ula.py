from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exact_networks import alphas_of

from fedsynth.errors import UserError
from fedsynth.mixture import ULAScheduler

MEAN, STD = 0.6, 0.3


def alphas(schedule: str = "linear") -> np.ndarray:
    return alphas_of("cosine" if schedule == "squaredcos_cap_v2" else "linear")


def recursion(c: float, lam: float, levels: np.ndarray, schedule: str = "linear") -> tuple[float, float]:
    """Mean and std after Langevin moves with the exact ε of N(0.6, 0.3²), from N(0, 1)."""
    mean, variance = 0.0, 1.0
    for alpha_bar in alphas(schedule)[levels]:
        true_variance = alpha_bar * STD**2 + 1 - alpha_bar
        step = c * (1 - alpha_bar)
        contraction = 1 - lam * step / true_variance
        mean = contraction * mean + lam * step / true_variance * np.sqrt(alpha_bar) * MEAN
        variance = contraction**2 * variance + 2 * step
    return mean, np.sqrt(variance)


def exact_eps(x: torch.Tensor, alpha_bar: torch.Tensor) -> torch.Tensor:
    return (1 - alpha_bar).sqrt() * (x - alpha_bar.sqrt() * MEAN) / (alpha_bar * STD**2 + 1 - alpha_bar)


def run(scheduler: Any, num_samples: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_samples, 1, 1, 1, generator=generator)
    for t in scheduler.timesteps:
        x = scheduler.step(exact_eps(x, scheduler.alphas_cumprod[t]), t, x, generator=generator).prev_sample
    return x


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize(("c", "lam", "rounds"), [(0.144, 2.0, 1000), (0.2, 1.0, 100)])
def test_gaussian_follows_the_closed_recursion(c: float, lam: float, rounds: int, schedule: str) -> None:
    scheduler = ULAScheduler(step_scale=c, score_scale=lam, beta_schedule=schedule)
    scheduler.set_timesteps(rounds)
    np.testing.assert_allclose(scheduler.alphas_cumprod, alphas(schedule), rtol=1e-4, atol=1e-8)
    mean, expected = recursion(c, lam, scheduler.timesteps.numpy(), schedule)
    samples = run(scheduler, 20_000)
    assert float(samples.mean()) == pytest.approx(mean, abs=0.01)
    assert float(samples.std()) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(("c", "lam"), [(0.2, 1.0), (0.5, 1.0), (0.5, 2.0)])
def test_stationary_variance_at_a_fixed_level(c: float, lam: float) -> None:
    scheduler = ULAScheduler(step_scale=c, score_scale=lam)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(20_000, 1, 1, 1, generator=generator)
    one_minus_alpha = 1 - float(alphas()[500])
    variances = []
    for move in range(150):
        x = scheduler.step(x / one_minus_alpha**0.5, 500, x, generator=generator).prev_sample
        if move >= 50:
            variances.append(float(x.var()))
    # a = λη/(1-ᾱ) = λc; the target of temperature λ has variance (1-ᾱ)/λ.
    assert np.mean(variances) == pytest.approx(2 / (2 - lam * c) * one_minus_alpha / lam, rel=0.01)


def test_one_step_by_hand() -> None:
    scheduler = ULAScheduler(step_scale=0.3, score_scale=1.5)
    x, eps = torch.randn(2, 4, 3, 2, 2, generator=torch.Generator().manual_seed(4))
    noise = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(5))
    rest = 1 - alphas()[700]
    step = 0.3 * rest
    expected = x.double() - step * 1.5 * eps.double() / np.sqrt(rest) + np.sqrt(2 * step) * noise.double()
    found = scheduler.step(eps, 700, x, generator=torch.Generator().manual_seed(5))
    np.testing.assert_allclose(found.prev_sample, expected, rtol=1e-4, atol=1e-5)
    (as_tuple,) = scheduler.step(eps, 700, x, generator=torch.Generator().manual_seed(5), return_dict=False)
    assert torch.equal(as_tuple, found.prev_sample)


def test_add_noise_is_the_forward_process() -> None:
    clean, noise = torch.randn(2, 3, 1, 2, 2, generator=torch.Generator().manual_seed(4))
    t = torch.tensor([0, 500, 999])
    alpha_bar = alphas()[t][:, None, None, None]
    expected = np.sqrt(alpha_bar) * clean.numpy() + np.sqrt(1 - alpha_bar) * noise.numpy()
    np.testing.assert_allclose(ULAScheduler().add_noise(clean, noise, t), expected, atol=1e-5)


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
def test_is_saved_and_loaded_like_any_diffusers_scheduler(schedule: str, tmp_path: Path) -> None:
    scheduler = ULAScheduler(
        num_train_timesteps=500,
        beta_start=2e-4,
        beta_end=0.03,
        beta_schedule=schedule,
        step_scale=0.1,
        score_scale=2.0,
    )
    scheduler.save_config(tmp_path)
    loaded = ULAScheduler.from_pretrained(tmp_path)
    copied = ULAScheduler.from_config(scheduler.config)
    names = [name for name in inspect.signature(ULAScheduler.__init__).parameters if name != "self"]
    for other in (loaded, copied):
        assert {name: other.config[name] for name in names} == {name: scheduler.config[name] for name in names}
        assert torch.equal(other.step_sizes, scheduler.step_sizes)
        assert torch.equal(other.alphas_cumprod, scheduler.alphas_cumprod)
        assert len(other) == 500


@pytest.mark.parametrize("rounds", [1, 25, 999, 1000])
def test_grid_falls_from_the_noisiest_to_the_cleanest_level(rounds: int) -> None:
    scheduler = ULAScheduler()
    scheduler.set_timesteps(rounds)
    grid = scheduler.timesteps.tolist()
    assert len(grid) == rounds
    assert grid[0] == 999
    assert grid[-1] == (0 if rounds > 1 else 999)
    gaps = -np.diff(grid)
    assert rounds == 1 or (gaps.min() >= 1 and gaps.max() - gaps.min() <= 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step_scale": 0.0}, r"step-scale = 0.0: must be > 0"),
        ({"step_scale": float("nan")}, r"step-scale = nan: must be > 0"),
        ({"step_scale": 0.51}, r"step-scale = 0.51: the largest step size is 0.510 > 0.5"),
        ({"score_scale": 0.0}, r"score-scale = 0.0: must be > 0"),
        ({"score_scale": 5.0, "step_scale": 0.4}, r"score-scale = 5.0: must be < 5, 2 / step-scale"),
    ],
)
def test_refuses_what_cannot_work(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ULAScheduler(**arguments)


@pytest.mark.parametrize("rounds", [0, 1001])
def test_refuses_more_levels_than_there_are(rounds: int) -> None:
    with pytest.raises(UserError, match=rf"{rounds} noise levels asked for: must be in 1 … 1000"):
        ULAScheduler().set_timesteps(rounds)
