"""Samplers by name: their levels, their moves against the papers' formulas, and what they remember."""

from __future__ import annotations

import copy
import io
import itertools
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
from exact_networks import MEAN, PAPER, STD, alphas_of

from fedsynth.config import RECIPES, Recipe
from fedsynth.diffusion import (
    SAMPLERS,
    lasting_scheduler,
    make_scheduler,
    noise_schedule,
    restore_sampler,
    sample,
    sampler_state,
)
from fedsynth.diffusion.sampling import PredictNoise
from fedsynth.errors import UserError

NO_LABELS = torch.zeros(0, dtype=torch.long)
ALPHAS = alphas_of("linear")
for_every_recipe = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 25, 1000])
def test_levels_are_those_of_the_solver_and_of_the_scheduler_saved_with_a_network(sampler: str, steps: int) -> None:
    scheduler, lasting = make_scheduler(PAPER, steps, sampler), lasting_scheduler(PAPER, sampler)
    if sampler != "ddpm":
        expected = np.sqrt((1 - ALPHAS) / ALPHAS)[scheduler.timesteps.numpy()]
        np.testing.assert_allclose(scheduler.sigmas.numpy()[:-1], expected, rtol=1e-4)
        assert scheduler.sigmas[-1] == 0
    levels = scheduler.timesteps.tolist()
    again = type(lasting).from_config(json.loads(lasting.to_json_string()))
    again.set_timesteps(steps)
    saved = again.timesteps.tolist()
    # Of dpmsolver++'s 1,000 levels several are the same: the saved scheduler asks there twice.
    assert (list(dict.fromkeys(saved)) if steps == 1000 else saved) == levels
    assert levels[0] == 999
    assert all(later < earlier for earlier, later in itertools.pairwise(levels))
    assert len(levels) == steps or (sampler.endswith("dpmsolver++") and steps == 1000 and len(levels) > 700)


@pytest.mark.parametrize("total", [1000, 500])
def test_levels_of_the_linear_schedule_are_diffusers_own(total: int) -> None:
    recipe = PAPER.model_copy(update={"num_train_timesteps": total, "beta_end": 20 / total})
    options = {**noise_schedule(recipe), "timestep_spacing": "trailing"}
    karras, even = DPMSolverMultistepScheduler(**options, use_karras_sigmas=True), DDPMScheduler(**options)
    # At 61 of 1,000 a rounding error has diffusers add a level below 0.
    for steps in {*range(1, 101), 250, total} - {61}:
        for scheduler in (karras, even):
            scheduler.set_timesteps(steps)
        nearest = karras.timesteps.unique().flip(0)
        assert torch.equal(make_scheduler(recipe, steps, "dpmsolver++").timesteps, nearest), steps
        assert torch.equal(make_scheduler(recipe, steps, "sde-dpmsolver++").timesteps, nearest), steps
        assert torch.equal(make_scheduler(recipe, steps, "ddpm").timesteps, even.timesteps), steps
        assert torch.equal(make_scheduler(recipe, steps, "ddim").timesteps, even.timesteps), steps


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 5, 25, 100, 900])
def test_levels_of_the_cosine_schedule_begin_where_the_signal_is_all_but_gone(steps: int, sampler: str) -> None:
    recipe, alphas = RECIPES["default"], alphas_of("cosine")
    levels = make_scheduler(recipe, steps, sampler).timesteps.tolist()
    sigmas = np.sqrt((1 - alphas) / alphas)
    # The levels are whole timesteps, of a schedule that goes on to 20,000.
    assert sigmas[levels[0] - 1] < 160 < sigmas[levels[0] + 1] < sigmas[-1] / 90
    assert all(later < earlier for earlier, later in itertools.pairwise(levels))
    assert levels[-1] >= 0
    assert len(levels) == steps
    spaces = -np.diff([*levels, -1])
    assert spaces.max() - spaces.min() <= 1


def test_dpmsolver_s_levels_are_those_of_karras() -> None:
    ends = [np.sqrt((1 - ALPHAS[t]) / ALPHAS[t]) for t in (999, 0)]
    ramp = np.linspace(0, 1, 25)
    sigmas = (ends[0] ** (1 / 7) + ramp * (ends[1] ** (1 / 7) - ends[0] ** (1 / 7))) ** 7  # Karras et al. 2022, Eq. 5
    nearest = [int(np.abs(np.log(np.sqrt((1 - ALPHAS) / ALPHAS)) - np.log(sigma)).argmin()) for sigma in sigmas]
    levels = make_scheduler(PAPER, 25, "dpmsolver++").timesteps.numpy()
    assert np.abs(levels - nearest).max() <= 1


@for_every_recipe
def test_ddim_moves_as_in_the_paper(recipe: Recipe) -> None:
    """Song et al. 2021, Eq. 12 with σ = 0, in float64."""
    alphas = alphas_of(recipe.schedule)

    def predict(x: torch.Tensor, t: int, labels: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x) * (0.3 + t / 2000)

    steps, start = 20, torch.randn(50, 1, 2, 2, generator=generator()) * 0.3
    found = sample(predict, make_scheduler(recipe, steps, "ddim"), start, NO_LABELS, generator())
    levels = make_scheduler(recipe, steps, "ddim").timesteps.tolist()
    x = start.double().numpy()
    for t, s in zip(levels, [*levels[1:], None], strict=True):
        eps = np.tanh(x) * (0.3 + t / 2000)
        clean = np.clip((x - np.sqrt(1 - alphas[t]) * eps) / np.sqrt(alphas[t]), -1, 1)
        # The move keeps the direction that belongs to the clipped estimate.
        eps = (x - np.sqrt(alphas[t]) * clean) / np.sqrt(1 - alphas[t])
        alpha_bar = 1.0 if s is None else alphas[s]
        x = np.sqrt(alpha_bar) * clean + np.sqrt(1 - alpha_bar) * eps
    np.testing.assert_allclose(found.numpy(), x, atol=2e-4)


@for_every_recipe
@pytest.mark.parametrize(
    ("sampler", "steps", "tolerance"), [("ddim", 200, 0.01), ("dpmsolver++", 25, 0.01), ("sde-dpmsolver++", 25, 0.03)]
)
def test_exact_predictions_give_the_gaussian_back(
    sampler: str, steps: int, tolerance: float, recipe: Recipe, gaussian_eps: Callable[..., PredictNoise]
) -> None:
    noise, scheduler = torch.randn(20_000, 1, 1, 1, generator=generator()), make_scheduler(recipe, steps, sampler)
    # What is left of the images at the first level: next to nothing but under Stable Diffusion's schedule.
    alpha_bar = float(alphas_of(recipe.schedule)[int(scheduler.timesteps[0])])
    start = noise * (alpha_bar * STD**2 + 1 - alpha_bar) ** 0.5 + alpha_bar**0.5 * MEAN
    found = sample(gaussian_eps(MEAN, STD, recipe.schedule), scheduler, start, NO_LABELS, generator(1))
    assert float(found.mean()) == pytest.approx(MEAN, abs=0.006)
    # The last move answers with the mean of what its level leaves open.
    last = float(alphas_of(recipe.schedule)[int(scheduler.timesteps[-1])])
    kept = last * STD**2 / (last * STD**2 + 1 - last)
    assert float(found.std()) == pytest.approx(STD * kept**0.5, abs=tolerance)


@for_every_recipe
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("bound", [1.0, 0.4, 3.0])
def test_estimates_of_images_are_clipped(bound: float, sampler: str, recipe: Recipe) -> None:
    def absurd(x: torch.Tensor, t: int, labels: torch.Tensor) -> torch.Tensor:
        return -20 * signs * torch.ones_like(x)

    signs, scheduler = torch.tensor([1.0, -1.0])[:, None, None, None], make_scheduler(recipe, 8, sampler, bound)
    found = sample(absurd, scheduler, torch.zeros(2, 1, 2, 2), NO_LABELS, generator())
    assert found.flatten(1).tolist() == [pytest.approx([bound] * 4, abs=1e-4), pytest.approx([-bound] * 4, abs=1e-4)]


@for_every_recipe
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("cut", [1, 4])
def test_a_sampler_goes_on_from_what_it_remembers(sampler: str, cut: int, recipe: Recipe) -> None:
    def walk(scheduler: Any, x: torch.Tensor, levels: range) -> torch.Tensor:
        for level in levels:
            noise = generator(level)
            x = scheduler.step(torch.tanh(x + level), scheduler.timesteps[level], x, generator=noise).prev_sample
        return x

    start, whole = torch.randn(3, 1, 4, 4, generator=generator()), make_scheduler(recipe, 6, sampler)
    expected = walk(whole, start, range(6))
    first = make_scheduler(recipe, 6, sampler)
    middle = walk(first, start, range(cut))
    file = io.BytesIO()
    torch.save(sampler_state(first), file)
    file.seek(0)
    second = make_scheduler(recipe, 6, sampler)
    restore_sampler(second, torch.load(file, weights_only=True))
    assert torch.equal(walk(second, copy.deepcopy(middle), range(cut, 6)), expected)


def test_unknown_sampler_is_refused() -> None:
    with pytest.raises(UserError, match=r"unknown sampler 'dpm-solver': did you mean 'dpmsolver\+\+'\?"):
        make_scheduler(PAPER, 5, "dpm-solver")
