"""Picard iteration: the levels of a window in one go (Shih et al. 2023, ParaDiGMS, arXiv 2305.16317).

Samples that move by x_{j+1} = Φ_j(x_j) are a fixed point of x_{j+1} = x_0 + Σ_{i≤j} (Φ_i(x_i) - x_i), in which all
Φ_i can be evaluated at once on guesses g_i of x_i. Where the noise of a stochastic Φ_i is drawn once for its level,
the fixed point is the result of moving one level after the other, and the first j states are exact after j iterations.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

TOLERANCE = 0.1
"""Largest change of a sample in an iteration, relative to the noise of an ancestral move, at which it has converged."""


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


def converged(state: torch.Tensor, guess: torch.Tensor, noise_std: float) -> bool:
    """Whether no sample's root mean square change exceeds :data:`TOLERANCE` of the noise (ParaDiGMS, Sec. 3.2).

    The paper takes the noise of the move that leaves a state; here it is that of the move that leads to it, since the
    last move carries none.

    Args:
        state: x_j of this iteration (n, C, H, W).
        guess: g_j.
        noise_std: see :func:`ancestral_std`.
    """
    change = (state - guess).flatten(1).double().square().mean(1).max()
    return bool(change <= (TOLERANCE * noise_std) ** 2)


def ancestral_std(alpha_bar_t: float, alpha_bar_s: float) -> float:
    """Return the std of the noise in an ancestral move t → s (Ho et al. 2020, Eq. 7): √((1-ᾱ_s)/(1-ᾱ_t) (1-ᾱ_t/ᾱ_s)).

    Args:
        alpha_bar_t: ᾱ before the move, in (0, 1).
        alpha_bar_s: ᾱ after it, in (alpha_bar_t, 1].
    """
    return float(((1 - alpha_bar_s) / (1 - alpha_bar_t) * (1 - alpha_bar_t / alpha_bar_s)) ** 0.5)
