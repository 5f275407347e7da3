from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from numpy.typing import NDArray

from fedsynth.diffusion.noise_levels import Level, match_levels, to_noise

MEAN, STD = 0.6, 0.3


def alphas_of(steps: int = 1000, schedule: str = "linear", **options: float) -> NDArray[np.float64]:
    """ᾱ in float64."""
    betas = DDPMScheduler(num_train_timesteps=steps, beta_schedule=schedule, **options).betas.double().numpy()
    return np.asarray(np.cumprod(1 - betas))


RUN = alphas_of()


def exact_eps(x: torch.Tensor, alpha_bar: float) -> torch.Tensor:
    """E[ε | x] for N(MEAN, STD²) under x = √ᾱ x_0 + √(1-ᾱ) ε."""
    return (x - math.sqrt(alpha_bar) * MEAN) * math.sqrt(1 - alpha_bar) / (alpha_bar * STD**2 + 1 - alpha_bar)


def samples_at(alpha_bar: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(200, 1, 1, 1, generator=generator, dtype=torch.float64) for _ in range(2))
    return math.sqrt(alpha_bar) * (MEAN + STD * clean) + math.sqrt(1 - alpha_bar) * noise


@pytest.mark.parametrize("alpha_bar", [0.9999, 0.7, 0.02, 1e-4])
def test_every_kind_of_prediction_becomes_the_noise(alpha_bar: float) -> None:
    generator = torch.Generator().manual_seed(1)
    clean, noise = (torch.randn(4, 3, 2, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    clean = clean.clamp(-1, 1)
    x = math.sqrt(alpha_bar) * clean + math.sqrt(1 - alpha_bar) * noise
    velocity = math.sqrt(alpha_bar) * noise - math.sqrt(1 - alpha_bar) * clean
    for prediction, kind in ((noise, "epsilon"), (velocity, "v_prediction"), (clean, "sample")):
        torch.testing.assert_close(to_noise(prediction, x, alpha_bar, kind), noise, rtol=0, atol=1e-12)
    # What a network says of an image beyond its range is taken to be at the range's end.
    for bound in (1.0, 2.0):
        found = to_noise(clean + 9 * clean.sign(), x, alpha_bar, "sample", bound)
        torch.testing.assert_close(found, to_noise(bound * clean.sign(), x, alpha_bar, "sample", bound), rtol=0, atol=0)


@pytest.mark.parametrize("fractional", [True, False])
def test_own_schedule_is_found_level_by_level(fractional: bool) -> None:
    levels = match_levels(RUN, alphas_of(), fractional)
    assert levels == [Level(float(t), float(alpha_bar), float(alpha_bar), 1.0) for t, alpha_bar in enumerate(RUN)]
    assert all(level.exact for level in levels)


@pytest.mark.parametrize(
    "own",
    [alphas_of(400, "squaredcos_cap_v2"), alphas_of(4000, beta_start=2e-5, beta_end=8e-3)],
    ids=["cosine", "linear"],
)
def test_fractional_timesteps_lie_where_the_log_ratios_cross(own: NDArray[np.float64]) -> None:
    log_snr = [np.log(alphas / (1 - alphas)) for alphas in (RUN, own)]
    inside = 0
    for t, level in enumerate(match_levels(RUN, own, fractional=True)):
        below = math.floor(level.timestep)
        share = level.timestep - below
        if not own[-1] <= RUN[t] <= own[0]:
            continue
        inside += 1
        above = min(below + 1, len(own) - 1)
        assert (1 - share) * log_snr[1][below] + share * log_snr[1][above] == pytest.approx(log_snr[0][t], abs=1e-9)
        assert level.own_alpha_bar == pytest.approx(RUN[t], rel=1e-12)
        assert level.scale == pytest.approx(1.0, rel=1e-12)
    assert inside > 950


def test_rounded_timesteps_are_the_nearest_and_keep_the_image_under_the_noise() -> None:
    own = alphas_of(400, "squaredcos_cap_v2")
    level = match_levels(RUN, own, fractional=False)[500]
    distances = np.abs(np.log(own / (1 - own)) - np.log(RUN[500] / (1 - RUN[500])))
    assert level.timestep == np.argmin(distances)
    assert not level.exact
    assert level.own_alpha_bar == own[int(level.timestep)]
    assert_image_kept(level, RUN[500], level.scale)
    assert level.scale * math.sqrt(RUN[500]) == pytest.approx(math.sqrt(level.own_alpha_bar), rel=1e-12)
    x = samples_at(RUN[500])
    error = level.to_run(exact_eps(level.scale * x, level.own_alpha_bar), x) - exact_eps(x, RUN[500])
    assert float(error.abs().max()) < 0.02


def assert_image_kept(level: Level, alpha_bar: float, scale: float) -> None:
    """The answer at our level says the same x_0 as the network's at its own, whatever it is."""
    generator = torch.Generator().manual_seed(2)
    x, own_eps = (torch.randn(9, 1, 2, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    clean = (scale * x - math.sqrt(1 - level.own_alpha_bar) * own_eps) / math.sqrt(level.own_alpha_bar)
    expected = (x - math.sqrt(alpha_bar) * clean) / math.sqrt(1 - alpha_bar)
    torch.testing.assert_close(level.to_run(own_eps, x), expected, rtol=1e-9, atol=1e-9)


def test_below_the_cleanest_level_the_image_is_kept() -> None:
    own = alphas_of(100, beta_start=4e-3, beta_end=0.2)
    level = match_levels(RUN, own, fractional=True)[0]
    assert (level.timestep, level.own_alpha_bar) == (0.0, own[0])
    assert level.scale == pytest.approx(math.sqrt(own[0] / RUN[0]), rel=1e-12)
    assert_image_kept(level, RUN[0], level.scale)
    # A pixel without any spread: all of its deviation is noise, whatever the network takes its amount for.
    flat = math.sqrt(RUN[0]) * MEAN + math.sqrt(1 - RUN[0]) * torch.tensor([[[[1.5]]]], dtype=torch.float64)
    answered = (level.scale * flat - math.sqrt(own[0]) * MEAN) / math.sqrt(1 - own[0])
    assert float(level.to_run(answered, flat)) == pytest.approx(1.5, rel=1e-9)


def test_above_the_noisiest_level_the_input_stays_of_variance_one() -> None:
    own = alphas_of(1000, "scaled_linear", beta_start=8.5e-4, beta_end=0.012)
    level = match_levels(RUN, own, fractional=True)[999]
    assert (level.timestep, level.own_alpha_bar, level.scale) == (999.0, own[-1], 1.0)
    assert_image_kept(level, RUN[999], 1.0)
    x = samples_at(RUN[999])
    error = level.to_run(exact_eps(x, own[-1]), x) - exact_eps(x, RUN[999])
    assert float(error.abs().max()) < 2e-4
    assert float(x.std()) == pytest.approx(1.0, abs=0.1)


def test_levels_without_any_signal_are_not_used() -> None:
    own = alphas_of(1000, rescale_betas_zero_snr=True)
    assert own[-1] == 0
    levels = match_levels(RUN, own, fractional=True)
    assert max(level.timestep for level in levels) <= 998
    assert all(math.isfinite(level.own_alpha_bar) and level.own_alpha_bar > 0 for level in levels)
