"""Corrector moves at a noise level, between the moves from level to level (Song et al. 2021, arXiv 2011.13456)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from fedsynth.errors import UserError


@dataclass(frozen=True)
class LangevinCorrector:
    """Langevin moves that bring samples nearer to the distribution of the level where they stand.

    Attributes:
        steps: moves at every level after the first, where samples are pure noise already; 0: none.
        step_scale: c in (0, 1] of the step size η_t = c (1-ᾱ_t)^p, as of :class:`fedsynth.mixture.ULAScheduler`.
        step_power: p ≥ 1.

    Raises:
        UserError: out of range.
    """

    steps: int = 0
    step_scale: float = 0.2
    step_power: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise UserError(f"corrector-steps = {self.steps}: must be >= 0")
        if not 0 < self.step_scale <= 1:
            raise UserError(f"step-scale = {self.step_scale}: must be > 0 and <= 1")
        if not self.step_power >= 1:
            raise UserError(f"step-power = {self.step_power}: must be >= 1")

    def visits(self, timesteps: Iterable[int]) -> list[tuple[int, bool]]:
        """Return the noise level of every move, in order, and whether the move is a corrector's.

        Args:
            timesteps: a sampler's levels, noisiest first.
        """
        first, *later = timesteps
        return [(first, False)] + [
            (t, corrects) for t in later for corrects in (*(True for _ in range(self.steps)), False)
        ]

    def move(self, x: torch.Tensor, eps: torch.Tensor, alpha: float, generator: torch.Generator) -> torch.Tensor:
        """Return x - a σ ε* + σ √(a (2-a)) z, with σ = √(1-ᾱ) and a = η/σ².

        To first order in a these are Langevin moves of step η on the score -ε*/σ. Their noise has the variance
        σ² a (2-a) instead of 2η (our choice): so the noise of the samples keeps its variance σ² exactly, however many
        moves there are, where plain Langevin moves inflate it by up to a factor of 2/(2-a).

        Args:
            x: samples (N, C, H, W) at the level.
            eps: composed noise prediction ε* of them, of the same shape.
            alpha: ᾱ of the level, in (0, 1).
            generator: source of z.
        """
        variance = 1 - alpha
        a = self.step_scale * variance ** (self.step_power - 1)
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        moved: torch.Tensor = x - a * variance**0.5 * eps + (variance * a * (2 - a)) ** 0.5 * noise
        return moved
