"""Samplers by name, as diffusers schedulers that ask for noise predictions at whole timesteps only."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler

from fedsynth.config import Diffusion
from fedsynth.errors import unknown_choice
from fedsynth.plugins import is_plugin, load_plugin

SAMPLERS = ("ddpm", "ddim", "dpmsolver++", "sde-dpmsolver++")


def make_scheduler(diffusion: Diffusion, num_inference_steps: int | None = None, sampler: str = "ddpm") -> Any:
    """Return the scheduler of a noise schedule, visiting ``num_inference_steps`` levels (None: all).

    ``ddpm``: ancestral moves (Ho et al. 2020) on a respaced grid. ``ddim``: deterministic moves (Song et al. 2021,
    η = 0), which are DPM-Solver++ of order 1. ``dpmsolver++``: its second-order multistep version (Lu et al. 2022,
    arXiv 2211.01095) on the noise levels of Karras et al. 2022 (arXiv 2206.00364). ``sde-dpmsolver++``: the same for
    the stochastic process, with fresh noise in every move. Every sampler clips its estimate of x_0 to [-1, 1] and
    starts at the last level, where pure noise belongs (Lin et al. 2023, arXiv 2305.08891).

    Args:
        diffusion: the noise schedule.
        num_inference_steps: levels to visit, 1 to T. Karras's levels are rounded to whole timesteps, and those that
            fall together are visited once: a few less than asked for, near T.
        sampler: one of :data:`SAMPLERS`, or ``module:function`` of a plug-in, called with the noise schedule and the
            number of levels, it returns a scheduler that keeps nothing between moves.

    Raises:
        UserError: unknown sampler.
    """
    if sampler not in SAMPLERS and not is_plugin(sampler):
        raise unknown_choice("sampler", sampler, SAMPLERS)
    steps = num_inference_steps or diffusion.num_train_timesteps
    if is_plugin(sampler):
        return load_plugin("sampler", sampler)(diffusion, steps)
    if sampler == "ddpm":
        scheduler = DDPMScheduler(**_schedule(diffusion), timestep_spacing="trailing")
        scheduler.set_timesteps(steps)
        return scheduler
    if sampler == "ddim":
        solver = _solver(diffusion, solver_order=1)
        _set_timesteps(solver, num_inference_steps=steps)
        return solver
    solver = _solver(diffusion, algorithm_type=sampler)
    # Levels between two timesteps would be worked with that the networks are not asked at.
    _set_timesteps(solver, timesteps=_karras_timesteps(diffusion, steps))
    return solver


def lasting_scheduler(diffusion: Diffusion, sampler: str = "ddpm") -> Any:
    """Return the scheduler to save beside a network: its own ``set_timesteps(n)`` finds the levels of ``sampler``.

    Args:
        diffusion: the noise schedule.
        sampler: one of :data:`SAMPLERS`.
    """
    if sampler in ("dpmsolver++", "sde-dpmsolver++"):
        return _solver(diffusion, algorithm_type=sampler, use_karras_sigmas=True)
    return make_scheduler(diffusion, sampler=sampler)


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


def _schedule(diffusion: Diffusion) -> dict[str, Any]:
    return {
        "num_train_timesteps": diffusion.num_train_timesteps,
        "beta_start": diffusion.beta_start,
        "beta_end": diffusion.beta_end,
    }


def _solver(diffusion: Diffusion, **options: Any) -> DPMSolverMultistepScheduler:
    return DPMSolverMultistepScheduler(
        **_schedule(diffusion),
        timestep_spacing="trailing",
        # With this largest value, dynamic thresholding is clipping to [-1, 1].
        thresholding=True,
        sample_max_value=1.0,
        **options,
    )


def _set_timesteps(solver: DPMSolverMultistepScheduler, **levels: Any) -> None:
    with warnings.catch_warnings():
        # diffusers hands tensors to NumPy in a way that only NumPy's developers need to hear of.
        warnings.simplefilter("ignore", DeprecationWarning)
        solver.set_timesteps(**levels)


def _karras_timesteps(diffusion: Diffusion, steps: int) -> list[int]:
    solver = _solver(diffusion, use_karras_sigmas=True)
    _set_timesteps(solver, num_inference_steps=steps)
    return [int(t) for t in torch.unique(solver.timesteps).flip(0)]
