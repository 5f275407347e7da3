"""Samplers by name, as diffusers schedulers that ask for noise predictions at whole timesteps only."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
from numpy.typing import NDArray

from fedsynth.config import Recipe
from fedsynth.diffusion.recipe import BETA_SCHEDULES, DIFFUSERS_PREDICTION
from fedsynth.errors import UserError, unknown_choice
from fedsynth.plugins import is_plugin, load_plugin

SAMPLERS = ("ddpm", "ddim", "dpmsolver++", "sde-dpmsolver++")

MOST_SIGMA = 160.0
"""Noise over signal, √((1-ᾱ)/ᾱ), from which on nothing is left to be learnt from. The linear schedule ends at 157
unless told otherwise and is followed to its end; the cosine one goes on to 20,000, and is not."""


def make_scheduler(
    recipe: Recipe, num_inference_steps: int | None = None, sampler: str = "ddpm", bound: float = 1.0
) -> Any:
    """Return the scheduler of a noise schedule, fed with ε and visiting ``num_inference_steps`` levels (None: all).

    ``ddpm``: ancestral moves (Ho et al. 2020) on a respaced grid. ``ddim``: deterministic moves (Song et al. 2021,
    η = 0), which are DPM-Solver++ of order 1. ``dpmsolver++``: its second-order multistep version (Lu et al. 2022,
    arXiv 2211.01095), under a linear schedule on the noise levels of Karras et al. 2022 (arXiv 2206.00364), under the
    cosine schedule on even timesteps, as all others. ``sde-dpmsolver++``: the same for the stochastic process, with
    fresh noise in every move. Every sampler clips its estimate of x_0 to the range of the
    samples and starts where the signal is all but gone (Lin et al. 2023, arXiv 2305.08891).

    Args:
        recipe: the noise schedule.
        num_inference_steps: levels to visit, 1 to T. Karras's levels are rounded to whole timesteps, and those that
            fall together are visited once: a few less than asked for, near T.
        sampler: one of :data:`SAMPLERS`, or ``module:function`` of a plug-in, called with the recipe and the number of
            levels, it returns a scheduler that keeps nothing between moves.
        bound: largest absolute value of x_0, see :class:`fedsynth.diffusion.codec.Codec`.

    Raises:
        UserError: unknown sampler, or a plug-in for samples of another bound than 1.
    """
    if sampler not in SAMPLERS and not is_plugin(sampler):
        raise unknown_choice("sampler", sampler, SAMPLERS)
    steps = num_inference_steps or recipe.num_train_timesteps
    most_sigma = MOST_SIGMA if recipe.schedule == "cosine" else math.inf
    if is_plugin(sampler):
        if bound != 1:
            raise UserError(
                f"sampler = '{sampler}': a plug-in works on pixels, not on latents; choose another, or codec"
            )
        return load_plugin("sampler", sampler)(recipe, steps)
    if sampler == "ddpm":
        scheduler = DDPMScheduler(**noise_schedule(recipe), timestep_spacing="trailing", clip_sample_range=bound)
        scheduler.set_timesteps(timesteps=even_timesteps(_alphas_cumprod(scheduler), steps, most_sigma))
        return scheduler
    if sampler == "ddim":
        solver = _solver(recipe, bound, solver_order=1)
        _set_timesteps(solver, even_timesteps(_alphas_cumprod(solver), steps, most_sigma))
        return solver
    solver = _solver(recipe, bound, algorithm_type=sampler)
    alphas_cumprod = _alphas_cumprod(solver)
    # Levels between two timesteps would be worked with that the networks are not asked at. On the cosine schedule half
    # of Karras's would lie where nothing is left of the images (our choice).
    karras = recipe.schedule != "cosine"
    _set_timesteps(
        solver, karras_timesteps(alphas_cumprod, steps) if karras else even_timesteps(alphas_cumprod, steps, most_sigma)
    )
    return solver


def lasting_scheduler(recipe: Recipe, sampler: str = "ddpm", bound: float = 1.0) -> Any:
    """Return the scheduler to save beside a network: it is fed with what the network predicts.

    Its own ``set_timesteps(n)`` finds the levels of ``sampler`` under the linear schedule; under the cosine one it
    goes on to T, where diffusers' own even levels begin. Solvers clip to [-1, 1] or, of other bounds, not at all.

    Args:
        recipe: noise schedule and prediction.
        sampler: one of :data:`SAMPLERS`.
        bound: largest absolute value of x_0, see :class:`fedsynth.diffusion.codec.Codec`.
    """
    own = {**noise_schedule(recipe), "prediction_type": DIFFUSERS_PREDICTION[recipe.prediction]}
    if sampler == "ddpm":
        return DDPMScheduler(**own, timestep_spacing="trailing", clip_sample_range=bound)
    options: dict[str, Any] = {"solver_order": 1} if sampler == "ddim" else {"algorithm_type": sampler}
    if sampler != "ddim" and recipe.schedule != "cosine":
        options["use_karras_sigmas"] = True
    # Dynamic thresholding with another largest value would scale x_0.
    return DPMSolverMultistepScheduler(**own, **{**_CLIPPED, "thresholding": bound == 1}, **options)


def sampler_state(scheduler: Any) -> dict[str, Any]:
    """Return a scheduler's state between two steps: tensors and numbers; nothing for one-step samplers."""
    if not isinstance(scheduler, DPMSolverMultistepScheduler):
        return {}
    outputs = {str(index): output for index, output in enumerate(scheduler.model_outputs) if output is not None}
    return {"outputs": outputs, "lower-order-nums": scheduler.lower_order_nums, "step-index": scheduler.step_index or 0}


def forget_used_outputs(scheduler: Any) -> None:
    """Have a multistep scheduler drop, after a step, what its next one will not look at: a copy of what it moves."""
    if isinstance(scheduler, DPMSolverMultistepScheduler):
        scheduler.model_outputs[0] = None


def restore_sampler(scheduler: Any, state: dict[str, Any]) -> None:
    """Have a fresh scheduler continue from a :func:`sampler_state`."""
    if not state:
        return
    for index in range(len(scheduler.model_outputs)):
        scheduler.model_outputs[index] = state["outputs"].get(str(index))
    scheduler.lower_order_nums = state["lower-order-nums"]
    # diffusers has no setter for the step it has reached, only for the one to start from.
    scheduler._step_index = state["step-index"]


def even_timesteps(alphas_cumprod: NDArray[np.float64], steps: int, most_sigma: float) -> list[int]:
    """Return evenly spaced timesteps from the one of most noise, up to ``most_sigma``, to about T/steps."""
    count = np.count_nonzero(_sigmas(alphas_cumprod) <= most_sigma)
    return [int(t) for t in np.unique(np.arange(count, 0, -count / steps)[:steps].round())[::-1] - 1]


def karras_timesteps(alphas_cumprod: NDArray[np.float64], steps: int, rho: float = 7.0) -> list[int]:
    """Return the timesteps nearest to the noise levels of Karras et al. 2022 (Eq. 5), noisiest first, each once.

    Args:
        alphas_cumprod: ᾱ of every timestep (T,).
        steps: number of levels, at least 1.
        rho: ρ; larger: more levels of little noise.
    """
    sigmas = _sigmas(alphas_cumprod)
    highest, lowest = sigmas[-1] ** (1 / rho), sigmas[0] ** (1 / rho)
    levels = np.log((highest + np.linspace(0, 1, steps) * (lowest - highest)) ** rho)
    timesteps = np.interp(levels, np.log(sigmas), np.arange(len(sigmas))).round()
    return [int(t) for t in np.unique(timesteps)[::-1]]


def _sigmas(alphas_cumprod: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.sqrt((1 - alphas_cumprod) / alphas_cumprod))


def _alphas_cumprod(scheduler: Any) -> NDArray[np.float64]:
    return np.asarray(scheduler.alphas_cumprod.double().numpy())


def noise_schedule(recipe: Recipe) -> dict[str, Any]:
    """Return the noise schedule as diffusers' schedulers take it."""
    return {
        "num_train_timesteps": recipe.num_train_timesteps,
        "beta_start": recipe.beta_start,
        "beta_end": recipe.beta_end,
        "beta_schedule": BETA_SCHEDULES[recipe.schedule],
    }


_CLIPPED = {
    "timestep_spacing": "trailing",
    # With this largest value, dynamic thresholding is clipping to [-1, 1].
    "thresholding": True,
    "sample_max_value": 1.0,
}


class _ClippingSolver(DPMSolverMultistepScheduler):
    """DPM-Solver++ that clips x_0 to any range: dynamic thresholding would scale it into [-1, 1]."""

    bound = 1.0

    def _threshold_sample(self, sample: torch.Tensor) -> torch.Tensor:
        return sample.clamp(-self.bound, self.bound)


def _solver(recipe: Recipe, bound: float, **options: Any) -> DPMSolverMultistepScheduler:
    solver = _ClippingSolver(**noise_schedule(recipe), **_CLIPPED, **options)
    solver.bound = bound
    return solver


def _set_timesteps(solver: DPMSolverMultistepScheduler, timesteps: list[int]) -> None:
    with warnings.catch_warnings():
        # diffusers hands tensors to NumPy in a way that only NumPy's developers need to hear of.
        warnings.simplefilter("ignore", DeprecationWarning)
        solver.set_timesteps(timesteps=timesteps)
