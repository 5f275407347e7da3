"""Which samplers go with which weights, and with several noise levels at once."""

from __future__ import annotations

import math

from fedsynth.config import Diffusion
from fedsynth.diffusion import SAMPLERS, STOCHASTIC
from fedsynth.errors import UserError
from fedsynth.mixture import ULAScheduler
from strategies.checks import in_range

ONE_STEP = ("ddpm", "ddim")
"""Samplers whose move depends on where the samples stand and on nothing else."""


def refuse_posterior(sampler: str, weights: str, temperature: float) -> None:
    """Refuse posterior weights where no path can be followed, and a temperature where there is nothing to soften.

    Raises:
        UserError: see there.
    """
    if weights == "posterior" and sampler not in STOCHASTIC:
        why = "its moves are not known"
        if sampler == "ula":
            why = "Langevin moves stay at a noise level"
        elif sampler in SAMPLERS:
            why = "its moves carry no noise"
        raise UserError(
            f"weights = 'posterior' needs sampler = {' or '.join(map(repr, STOCHASTIC))}, not '{sampler}': {why}, so"
            " that no path can be followed; set weights = 'constant' or 'energy'"
        )
    if in_range("temperature", temperature, 1, math.inf) > 1 and weights != "posterior":
        raise UserError(f"temperature = {temperature:g} softens weights = 'posterior', not '{weights}'")


def langevin_scheduler(diffusion: Diffusion, rounds: int, step_scale: float, score_scale: float) -> ULAScheduler:
    """Return the scheduler of ``ula`` over ``rounds`` levels; arguments as of ``DfD``."""
    scheduler: ULAScheduler = ULAScheduler(**diffusion.model_dump(), step_scale=step_scale, score_scale=score_scale)
    scheduler.set_timesteps(rounds)
    return scheduler


def refuse_window(sampler: str, parallel_levels: int) -> None:
    """Refuse several noise levels at once with a sampler that cannot.

    Raises:
        UserError: see there, or less than one level.
    """
    if in_range("parallel-levels", parallel_levels, 1) > 1 and sampler not in ONE_STEP:
        why = (
            "Langevin moves are no ancestral ones, by whose noise convergence is judged"
            if sampler == "ula"
            else f"a move of '{sampler}' also looks back at the answers of the level before"
        )
        raise UserError(
            f"parallel-levels = {parallel_levels} needs sampler = {' or '.join(map(repr, ONE_STEP))}, not '{sampler}'"
            f" ({why}): set one of them, or parallel-levels = 1"
        )
