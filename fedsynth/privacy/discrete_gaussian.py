"""Discrete Gaussian noise: whole numbers, drawn exactly, and what a sum of several draws is as private as.

N_Z(0, σ²) takes the whole number x with probability in proportion to exp(-x² / 2σ²) (Canonne, Kamath, Steinke 2020,
arXiv 2004.00010, Def. 1). It is drawn by their rejection sampling from random bits with integer arithmetic alone: a
float that is rounded has other probabilities than the proof speaks of, which has been attacked (Mironov 2012).

**What the sum of m draws is worth.** Let X be such a draw with a σ of at least :data:`LEAST_STD`.

1. *Poisson summation*: Σ_{z ∈ Z} exp(-(z - y)² / 2s²) = s√(2π) (1 + e) with |e| ≤ 2 Σ_{k ≥ 1} exp(-2π²s²k²), whatever
   the real number y is.
2. *The sum of draws is nearly a draw.* The probability that draws with variances a² and b² add up to x is
   proportional to exp(-x² / 2(a² + b²)) times the sum of 1. for s² = a²b² / (a² + b²) and y = x a² / (a² + b²); so no
   probability differs by more than a factor 1 ± 2e from that of one draw with variance a² + b² (Kairouz, Liu, Steinke
   2021, arXiv 2102.06387, Thm. 9). For m draws of variance σ², s² is σ² / 2 at least.
3. *A draw is nearly a Gaussian number that was rounded afterwards.* Take v + Y for a whole number v and Y ~ N(0, σ² -
   s²), and draw a whole number around it with probability in proportion to exp(-(x - v - Y)² / 2s²). By 1., x comes
   out with a probability that differs by no more than a factor 1 ± 2e from that of v + a draw with variance σ² (Peikert
   2010, Thm. 3.1). What is done to v + Y afterwards costs no privacy.

So the m-fold sum of draws, added to a vector of whole numbers, is as private as Gaussian noise of variance mσ² -
:data:`LOST_VARIANCE` is, up to factors 1 ± 2e in every coordinate of every release: with s² = :data:`LOST_VARIANCE` =
9, e < 10⁻⁷⁶, and with σ ≥ 8 the e of 2. is below 10⁻²⁷⁴. All of them together, over 10⁹ weights and 10⁶ rounds, change
ε by less than 10⁻⁶⁰; the accounting rounds up by far more. Subsampling commutes with all of this: what is added to the
vector does not depend on it.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Bits = Callable[[int], bytes]
"""Returns so many random bytes; :func:`os.urandom`, except in tests."""

LEAST_STD = 8
"""σ of a draw, at least, for the proof above."""
MOST_STD = 2**25
"""σ of a draw, at most: beyond, products would not fit into 64 bits."""
LOST_VARIANCE = 9
"""By so much is the variance of Gaussian noise smaller that a sum of draws is as private as."""
_MOST_SCALES = 63
"""Multiples of σ beyond which no proposal is accepted: one would be with a probability below 10⁻⁸⁰⁰."""


def discrete_gaussian(std: int, size: int, bits: Bits = os.urandom) -> NDArray[np.int64]:
    """Draw from N_Z(0, σ²) (Canonne et al. 2020, Alg. 3, with a proposal of scale σ).

    Args:
        std: σ, a whole number from 1 to :data:`MOST_STD`.
        size: how many.
        bits: secret randomness: noise that somebody can draw again is taken off again.

    Returns:
        Independent draws (size,).

    Raises:
        ValueError: σ out of its range.
    """
    if not 1 <= std <= MOST_STD:
        raise ValueError(f"standard deviation {std}: must be a whole number from 1 to {MOST_STD}")
    drawn = np.empty(size, np.int64)
    missing = np.arange(size)
    while len(missing):
        values, accepted = _propose(std, len(missing), bits)
        drawn[missing[accepted]] = values[accepted]
        missing = missing[~accepted]
    return drawn


def sampled_rows(count: int, rate: float, bits: Bits = os.urandom) -> NDArray[np.int64]:
    """Return which of ``count`` records a Poisson sample has: each by itself, with probability ``rate`` or 2⁻⁶³ less.

    Args:
        count: records.
        rate: q, 0 < q <= 1.
        bits: secret randomness.
    """
    return np.flatnonzero(_uniform(np.full(count, 2**63, np.uint64), bits) < np.uint64(int(rate * 2**63)))


def _propose(std: int, size: int, bits: Bits) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return draws of the discrete Laplace distribution of scale ``std`` (their Alg. 2), and which are accepted."""
    scale = np.uint64(std)
    low = _uniform(np.full(size, scale), bits)
    accepted = _exp_minus(low, np.full(size, scale), bits)
    high = np.zeros(size, np.uint64)
    growing = np.flatnonzero(accepted)
    while len(growing):
        one = np.ones(len(growing), np.uint64)
        growing = growing[_exp_minus(one, one, bits)]
        high[growing] += np.uint64(1)
    negative = _uniform(np.full(size, 2, np.uint64), bits) == 1
    # Zero must not come twice as often as it should.
    accepted &= ~(negative & (low == 0) & (high == 0)) & (high <= _MOST_SCALES)
    values = (low + high * scale).astype(np.int64)
    rows = np.flatnonzero(accepted)
    squares = np.square(np.abs(values[rows] - std).astype(np.uint64))
    accepted[rows] = _exp_minus(squares, np.full(len(rows), 2 * std * std, np.uint64), bits)
    return np.where(negative, -values, values), accepted


def _exp_minus(above: NDArray[np.uint64], below: NDArray[np.uint64], bits: Bits) -> NDArray[np.bool_]:
    """Return True with probability exp(-above / below), their Alg. 1, element by element."""
    whole, rest = np.divmod(above, below)
    outcome = np.ones(len(above), np.bool_)
    while len(rows := np.flatnonzero(outcome & (whole > 0))):
        outcome[rows] = _exp_of_fraction(np.ones(len(rows), np.uint64), np.ones(len(rows), np.uint64), bits)
        whole[rows] -= np.uint64(1)
    rows = np.flatnonzero(outcome)
    outcome[rows] = _exp_of_fraction(rest[rows], below[rows], bits)
    return outcome


def _exp_of_fraction(above: NDArray[np.uint64], below: NDArray[np.uint64], bits: Bits) -> NDArray[np.bool_]:
    """Return True with probability exp(-above / below), where the fraction is 1 at most."""
    count = np.ones(len(above), np.uint64)
    rows = np.arange(len(above))
    while len(rows):
        rows = rows[_uniform(below[rows] * count[rows], bits) < above[rows]]
        count[rows] += np.uint64(1)
    return (count & np.uint64(1)).astype(np.bool_)


def _uniform(below: NDArray[np.uint64], bits: Bits) -> NDArray[np.uint64]:
    """Return uniform whole numbers from 0 to ``below`` - 1, each below 2⁶³ + 1, exactly."""
    drawn = np.empty(len(below), np.uint64)
    masks = below - np.uint64(1)
    for shift in (1, 2, 4, 8, 16, 32):
        masks |= masks >> np.uint64(shift)
    missing = np.arange(len(below))
    while len(missing):
        numbers = np.frombuffer(bits(8 * len(missing)), "<u8") & masks[missing]
        fits = numbers < below[missing]
        drawn[missing[fits]] = numbers[fits]
        missing = missing[~fits]
    return drawn
