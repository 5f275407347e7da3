"""Which samplers go with which weights, with correctors, and with several noise levels at once."""

from __future__ import annotations

import math

from fedsynth.config import Diffusion
from fedsynth.diffusion import SAMPLERS
from fedsynth.errors import UserError
from fedsynth.mixture import LangevinCorrector, ULAScheduler
from fedsynth.mixture.picard import Window
from strategies.checks import in_range

ONE_STEP = ("ddpm", "ddim")
"""Samplers whose move depends on where the samples stand and on nothing else."""


def refuse_posterior(sampler: str, weights: str, temperature: float) -> None:
    """Refuse posterior weights where no path can be followed, and a temperature where there is nothing to soften.

    Raises:
        UserError: see there.
    """
    if weights == "posterior" and sampler not in SAMPLERS:
        why = "Langevin moves stay at a noise level" if sampler == "ula" else "its moves are not known"
        raise UserError(
            f"weights = 'posterior' needs sampler = {', '.join(map(repr, SAMPLERS))}, not '{sampler}': {why}, so that"
            " no path can be followed; set weights = 'constant' or 'energy'"
        )
    if in_range("temperature", temperature, 1, math.inf) > 1 and weights != "posterior":
        raise UserError(f"temperature = {temperature:g} softens weights = 'posterior', not '{weights}'")


def langevin_scheduler(
    diffusion: Diffusion, rounds: int, step_scale: float, step_power: float, score_scale: float
) -> ULAScheduler:
    """Return the scheduler of ``ula`` over ``rounds`` levels; arguments as of ``DfD``."""
    scheduler: ULAScheduler = ULAScheduler(
        **diffusion.model_dump(), step_scale=step_scale, step_power=step_power, score_scale=score_scale
    )
    scheduler.set_timesteps(rounds)
    return scheduler


def corrector_of(
    sampler: str, weights: str, parallel_levels: int, corrector_steps: int, step_scale: float, step_power: float
) -> LangevinCorrector:
    """Return the corrector of a run.

    Raises:
        UserError: out of range, or correctors with a sampler, weights or a window that they do not go with.
    """
    corrector = LangevinCorrector(corrector_steps, step_scale, step_power)
    if corrector.steps and weights == "posterior":
        raise UserError(
            f"corrector-steps = {corrector.steps} needs weights = 'constant' or 'energy', not 'posterior': Langevin"
            " moves stay at a noise level, so that no path can be followed; or set corrector-steps = 0"
        )
    if corrector.steps and sampler == "ula":
        raise UserError(
            f"corrector-steps = {corrector.steps} needs another sampler than 'ula', whose moves are Langevin moves all:"
            " set dfd-rounds instead, or corrector-steps = 0"
        )
    if corrector.steps and parallel_levels > 1:
        raise UserError(
            f"corrector-steps = {corrector.steps} needs parallel-levels = 1, not {parallel_levels}: moves at a level"
            " follow each other; or set corrector-steps = 0"
        )
    return corrector


def window_of(sampler: str, weights: str, parallel_levels: int, picard_tolerance: float) -> Window:
    """Return the window of a run.

    Raises:
        UserError: out of range, or several levels at once with a sampler or weights that cannot.
    """
    window = Window(parallel_levels, picard_tolerance)
    if window.levels > 1 and sampler not in ONE_STEP:
        why = (
            "Langevin moves are no ancestral ones, by whose noise convergence is judged"
            if sampler == "ula"
            else f"a move of '{sampler}' also looks back at the answers of the level before"
        )
        raise UserError(
            f"parallel-levels = {window.levels} needs sampler = {' or '.join(map(repr, ONE_STEP))}, not '{sampler}'"
            f" ({why}): set one of them, or parallel-levels = 1"
        )
    if window.levels > 1 and sampler == "ddim" and weights == "posterior":
        raise UserError(
            f"parallel-levels = {window.levels} needs sampler = 'ddpm' with weights = 'posterior': with 'ddim' the"
            " weights follow divergences, which guessed states do not have; set weights = 'constant' or 'energy'"
        )
    return window
