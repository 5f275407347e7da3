"""Picard iteration: the levels of a window in one go (Shih et al. 2023, ParaDiGMS, arXiv 2305.16317).

Samples that move by x_{j+1} = Φ_j(x_j) are a fixed point of x_{j+1} = x_0 + Σ_{i≤j} (Φ_i(x_i) - x_i), in which all
Φ_i can be evaluated at once on guesses g_i of x_i. Where the noise of a stochastic Φ_i is drawn once for its level,
the fixed point is the result of moving one level after the other, and the first j states are exact after j iterations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fedsynth.errors import UserError


@dataclass(frozen=True)
class Window:
    """Noise levels that are worked on together.

    Attributes:
        levels: how many; 1: one level after the other.
        tolerance: largest change of a sample in an iteration, relative to the noise of an ancestral move, up to which
            its state stands. 0 waits until nothing changes.

    Raises:
        UserError: out of range.
    """

    levels: int = 1
    tolerance: float = 0.1

    def __post_init__(self) -> None:
        if self.levels < 1:
            raise UserError(f"parallel-levels = {self.levels}: must be >= 1")
        if not self.tolerance >= 0:
            raise UserError(f"picard-tolerance = {self.tolerance}: must be >= 0")


def guesses(state: torch.Tensor, ahead: Sequence[torch.Tensor], levels: int) -> list[torch.Tensor]:
    """Return g_0 … g_{levels-1}: the state that is known, the guesses so far, and the last one for what lies beyond.

    Args:
        state: x_0 (n, C, H, W).
        ahead: g_1, g_2, … of the same shape, any number.
        levels: at least 1.
    """
    known = [state, *ahead][:levels]
    return known + [known[-1]] * (levels - len(known))


def picard_step(moved: torch.Tensor, state: torch.Tensor, guess: torch.Tensor) -> torch.Tensor:
    """Return x_{j+1} = Φ_j(g_j) + (x_j - g_j), which is x_0 + Σ_{i≤j} (Φ_i(g_i) - g_i).

    Written so, a state whose guess was right is Φ_j(x_j) to the last bit, whatever lies before it.

    Args:
        moved: Φ_j(g_j) (n, C, H, W).
        state: x_j of this iteration; for j = 0 the guess itself.
        guess: g_j.
    """
    return moved if state is guess else moved + (state - guess)


def converged(state: torch.Tensor, guess: torch.Tensor, deviation: float, tolerance: float) -> bool:
    """Whether no sample's root mean square change exceeds ``tolerance`` of the noise (ParaDiGMS, Sec. 3.2).

    The paper counts in the noise of the move that leaves a state; here it is that of the move that leads there, since
    the last move carries none.

    Args:
        state: x_j of this iteration (n, C, H, W).
        guess: g_j.
        deviation: see :func:`ancestral_deviation`.
        tolerance: see :class:`Window`.
    """
    change = (state - guess).flatten(1).double().square().mean(1).max()
    return bool(change <= (tolerance * deviation) ** 2)


def ancestral_deviation(alpha_t: float, alpha_s: float) -> float:
    """Deviation of the noise in an ancestral move t → s (Ho et al. 2020, Eq. 7): √((1-ᾱ_s)/(1-ᾱ_t) (1-ᾱ_t/ᾱ_s)).

    Args:
        alpha_t: ᾱ before the move, in (0, 1).
        alpha_s: ᾱ after it, in (alpha_t, 1].
    """
    return float(((1 - alpha_s) / (1 - alpha_t) * (1 - alpha_t / alpha_s)) ** 0.5)
