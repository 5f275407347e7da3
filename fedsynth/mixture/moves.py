"""The move of a synthetic set from one noise level to the next, by whoever makes or checks it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

import torch

from fedsynth.seeding import make_generator

SAMPLES, LABELS, COMPOSED = "samples", "labels", "composed"
"""Names of the arrays of a level: the set as it stood there (N, C, H, W), its classes (N,), and the noise prediction of
the mixture (N, C, H, W), from which its move follows."""

COHORT_NUMBERS = 2**16
"""Numbers in the samples of one cohort, at most: a scheduler's step holds half a dozen copies of what it moves."""

LOOKING_BACK = ("dpmsolver++", "sde-dpmsolver++")
"""Samplers whose move depends on the level before, too."""

TOLERANCE = 1e-3
"""How far a number of the set may be from what another CPU computes, per unit of its size (our choice).

Drawn noise and a scheduler's coefficients have other last bits there, some 1e-6; a grey level is 8e-3."""


def cohort_rows(labels: torch.Tensor, shape: tuple[int, ...]) -> Iterator[torch.Tensor]:
    """Yield the samples of every cohort, int64 (n,): of one class each, in the order of the classes, and few enough.

    Args:
        labels: class of every sample (N,).
        shape: (C, H, W) of one.
    """
    most = max(1, COHORT_NUMBERS // max(1, torch.Size(shape).numel()))
    for label in torch.unique(labels).tolist():
        yield from torch.nonzero(labels == label).squeeze(1).split(most)


def moved(
    scheduler: Any,
    level: int,
    now: Mapping[str, torch.Tensor],
    before: Mapping[str, torch.Tensor],
    seed: int,
) -> torch.Tensor:
    """Return the set at the next level, by moves from this one and, for second-order samplers, the one before.

    Args:
        scheduler: fresh, with its timesteps set; it stays fresh.
        level: moves made so far.
        now: samples, labels and composed prediction at this level.
        before: the same of the level before, where the sampler looks back; may be empty.
        seed: of the run.

    Returns:
        (N, C, H, W).
    """
    samples, composed = now[SAMPLES], now[COMPOSED]
    after, timesteps = torch.empty_like(samples), scheduler.timesteps.tolist()
    for number, rows in enumerate(cohort_rows(now[LABELS], samples.shape[1:])):
        mover = deepcopy(scheduler)
        if before:
            # Only for what the scheduler remembers of it.
            spare = make_generator(seed, "cooperative-noise", level - 1, number)
            mover.step(before[COMPOSED][rows], timesteps[level - 1], before[SAMPLES][rows], generator=spare)
        generator = make_generator(seed, "cooperative-noise", level, number)
        after[rows] = mover.step(composed[rows], timesteps[level], samples[rows], generator=generator).prev_sample
    return after


def is_move(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether a set is the expected one but for the last bits of another CPU (:data:`TOLERANCE`)."""
    return found.shape == expected.shape and bool(((found - expected).abs() <= TOLERANCE * (1 + expected.abs())).all())
