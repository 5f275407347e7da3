from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, UNet2DModel
from exact_networks import MEAN, PAPER, STD, alphas_of

from fedsynth.config import RECIPES, Recipe
from fedsynth.diffusion import draw_initial_noise, make_scheduler, noise_predictor, sample
from fedsynth.diffusion.sampling import PredictNoise, network_output

NO_LABELS = torch.zeros(0, dtype=torch.long)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ddpm_recursion(levels: list[int], schedule: str) -> tuple[float, float]:
    """Mean and std of ancestral samples under the exact ε, in float64."""
    alphas = alphas_of(schedule)
    mean, variance = 0.0, 1.0
    for t, s in zip(levels, [*levels[1:], None], strict=True):
        a_t, a_s = alphas[t], 1.0 if s is None else alphas[s]
        total = a_t * STD**2 + 1 - a_t
        # x̂₀ = gain·x + offset, then Ho et al. 2020, Eq. 7.
        gain, offset = np.sqrt(a_t) * STD**2 / total, MEAN - a_t * STD**2 / total * MEAN
        clean, current = np.sqrt(a_s) * (1 - a_t / a_s) / (1 - a_t), np.sqrt(a_t / a_s) * (1 - a_s) / (1 - a_t)
        mean = (clean * gain + current) * mean + clean * offset
        variance = (clean * gain + current) ** 2 * variance + (1 - a_s) / (1 - a_t) * (1 - a_t / a_s)
    return mean, np.sqrt(variance)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("steps", [25, 1000])
def test_ddpm_samples_follow_the_closed_recursion(
    steps: int, recipe: Recipe, gaussian_eps: Callable[..., PredictNoise]
) -> None:
    scheduler = make_scheduler(recipe, steps)
    mean, std = ddpm_recursion(scheduler.timesteps.tolist(), recipe.schedule)
    noise = torch.randn(20_000, 1, 1, 1, generator=generator())
    found = sample(gaussian_eps(MEAN, STD, recipe.schedule), scheduler, noise, NO_LABELS, generator(1))
    assert float(found.mean()) == pytest.approx(mean, abs=6e-3)
    assert float(found.std()) == pytest.approx(std, abs=4e-3)
    # Stable Diffusion's schedule leaves 0.5 % of the signal's variance at its end, which pure noise lacks.
    if steps == 1000 and recipe.schedule != "scaled-linear":
        assert (mean, std) == pytest.approx((MEAN, STD), abs=4e-3)


def test_equals_a_loop_by_hand(tiny_unet: Callable[..., UNet2DModel]) -> None:
    unet, scheduler = tiny_unet().eval(), make_scheduler(PAPER, 6)
    noise, labels = torch.randn(5, 1, 8, 8, generator=generator()), torch.tensor([0, 1, 2, 1, 0])
    x, hand = noise, generator(1)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(unet(x, t, class_labels=labels).sample, t, x, generator=hand).prev_sample
    kept, state = noise.clone(), torch.get_rng_state()
    done: list[int] = []
    found = sample(noise_predictor(unet, PAPER), scheduler, noise, labels, generator(1), on_step=done.append)
    assert torch.equal(found, x)
    assert done == [1, 2, 3, 4, 5, 6]
    assert torch.equal(noise, kept)
    assert torch.equal(torch.get_rng_state(), state)


def test_schedulers_of_another_noise_scale_recover_a_gaussian(
    gaussian_eps: Callable[..., PredictNoise],
) -> None:
    scheduler = EulerDiscreteScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(100)
    noise = torch.randn(20_000, 1, 1, 1, generator=generator())
    found = sample(gaussian_eps(MEAN, STD, "linear"), scheduler, noise, NO_LABELS, generator(1))
    assert (float(found.mean()), float(found.std())) == pytest.approx((MEAN, STD), abs=0.015)


def test_batches_do_not_matter(tiny_unet: Callable[..., UNet2DModel]) -> None:
    unet, labels = tiny_unet(), torch.arange(7) % 3
    x = torch.randn(7, 1, 8, 8, generator=generator())
    with torch.no_grad():
        expected = unet.eval()(x, 321, class_labels=labels).sample
    found = network_output(unet.train(), 3)(x, 321, labels)
    assert not unet.training
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert noise_predictor(unet, PAPER)(x[:0], 5, NO_LABELS).shape == (0, 1, 8, 8)


def test_initial_noise_depends_on_seed_alone() -> None:
    noise = draw_initial_noise(3, 4000, (1, 4, 4))
    assert torch.equal(noise, draw_initial_noise(3, 4000, (1, 4, 4)))
    assert not torch.equal(noise, draw_initial_noise(4, 4000, (1, 4, 4)))
    assert float(noise.mean()) == pytest.approx(0, abs=0.02)
    assert float(noise.std()) == pytest.approx(1, abs=0.02)
