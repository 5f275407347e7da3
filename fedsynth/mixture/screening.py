"""Screening: which silos' noise predictions may count, and for how much.

Three checks look at one silo alone and one at pairs. All images lie in [-1, 1] (latents within the bound of their
codec), so the prediction of an exact model implies an image x_0 = (x_t - √(1-ᾱ) ε) / √ᾱ in that range, at any noise
level and for any x_t. The first two checks rest on that: an exact model passes them whatever its images are, so that a
silo of unusual images is not taken for a hostile one, and near pure noise they leave hardly any room.

Samples that earlier answers left outside the images are nobody's fault at this level: what no answer of the size of
noise could have undone is not counted (:attr:`AnswerStatistics.unavoidable`).

The bounds are for trained models. Where more than half of the silos that answer, and two at least, miss a bound and
keep it loosened by the factor :data:`LEEWAY`, they are taken for undertrained rather than hostile, and the loosened
bound goes for all. Hostile silos that are at most half of a class's holders cannot bring that about, since silos beyond
the loosened bound do not count; where honest ones do, or where hostile ones are more than half, hostile silos gain that
factor and no more. A class's only holder is judged by the bounds as they are: nobody can vouch for it.

What the checks let pass, an honest silo could have answered. Not detected are therefore: a silo whose model draws
images that it should not hold; answers scaled by a factor from about :data:`MIN_GAIN` to 2; an input echoed with
noise on top; the same model shown by several silos with noise of its own on each; hostile answers at the last
few levels, where an answer hardly moves the images any more. No check helps energy weights against answers that are
2 % too small in thousands of dimensions: bound those weights with ``max-silo-weight``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import torch

from fedsynth.errors import UserError
from fedsynth.mixture.compose import row_slices

LEVELS = (4.04e-5, 6.97e-3, 0.194, 0.895)
"""Noise levels at which models are tried before the rounds, as ᾱ: those of the linear schedule at T, 0.7 T, 0.4 T and
0.1 T. At the first two all honest answers are nearly the same, so that zero, scaled and unrelated answers stand out; at
the last an input that is echoed does."""

EQUAL = 1e-4
"""Relative distance up to which two answers are one: one network evaluated in two ways differs by 4e-7, by 2e-5 when
its answers are float16, and two networks trained on digits by 0.19 at least."""

LEAST_NOISE = 0.1
"""Where the noise √(1-ᾱ) is less, this is the unit of the excess, and gain is not asked for: in the last levels solvers
leave the range of the images by a hundredth, which is more than the noise there, and answers move next to nothing."""

ECHO = 0.99
"""Cosine between answer and samples from which an answer only repeats its input: honest networks on digits reach 0.95
where :data:`ECHO_SHOWS`, those that predict x_0 0.88 after one step of training; an echo c·x has 1."""

ECHO_SHOWS = 0.7
"""An echo is looked for where noise makes up less than this share of the samples' size; above it every model echoes."""

MIN_GAIN = 0.1
"""Least gain ⟨ε, x_t⟩ / (d √(1-ᾱ)), 1 in expectation for an exact model of the images behind x_t (Stein's identity) and
unharmed by noise on ε. Scaled by what an exact model of any images would have at least
(:attr:`AnswerStatistics.least_gain`).

This bound and :data:`MAX_EXCESS` come from these extremes, measured on U-Nets trained on 8×8 digits for 300 and
1,500 steps, 8 samples of a class, at T, 0.7 T, 0.4 T and 0.1 T unless said otherwise:

====================================  ==============  ============
answers                               gain            excess
====================================  ==============  ============
honest                                0.27 … 1.51     0.02 … 0.44
with noise of half their size         0.30 … 1.51     0.04 … 0.59
with noise of their own size          0.27 … 1.61     0.10 … 1.08
of a silo whose digits are inverted   0.69 … 1.59     0.04 … 0.46
after 30 steps of training            0.13 … 0.61     0.10 … 0.98
0.05 x, from T to 0.4 T               0.04 … 0.06     0.58 … 1.05
other noise, from T to 0.4 T          -0.13 … 0.14    0.97 … 1.51
an earlier answer, at 0.7 T           -0.09 … 0.13    1.17 … 1.42
-ε, from T to 0.4 T                   -1.13 … -0.74   1.47 … 2.12
10 ε                                  2.7 … 14.6      3.0 … 9.2
====================================  ==============  ============

Those networks predict ε under a linear schedule, the recipe ``paper``. Networks of the default recipe, which predict
x_0 under a cosine one, after 40 to 100 steps, at the same ᾱ. They are the same at pure noise from the first step on,
and never echo: among 570 answers of honest ones none misses a bound.

====================================  ==============  ============
answers                               gain            excess
====================================  ==============  ============
honest                                0.13 … 1.12     0.00 … 0.37
with noise of half their size         0.15 … 1.10     0.20 … 0.51
with noise of their own size          0.15 … 1.10     0.37 … 1.03
of a silo whose digits are inverted   0.87 … 9.14     0.00 … 0.33
after 1 to 30 steps of training       0.14 … 1.53     0.00 … 0.41
0.05 x, from T to 0.4 T               0.04 … 0.06     0.60 … 0.95
other noise, from T to 0.4 T          -0.10 … 0.10    0.98 … 1.49
an earlier answer, at 0.7 T           -0.05 … 0.10    1.25 … 1.41
-ε, from T to 0.4 T                   -1.12 … -0.82   1.46 … 2.06
10 ε                                  1.6 … 11.2      6.0 … 9.5
====================================  ==============  ============
"""

MAX_EXCESS = 1.2
"""How far the implied x_0 may lie outside [-1, 1]: the root mean square distance of ε from the nearest prediction
within the range, at most the model's error; in the last levels see :data:`LEAST_NOISE`."""

LEEWAY = 2.0
"""Factor by which a bound gives way where most holders miss it alike: 10 ε, -ε and no answer at all stay beyond."""


@dataclass(frozen=True)
class AnswerStatistics:
    """Measures of one silo's answer about samples of one class at one timestep.

    Attributes:
        energy: ‖ε‖² / d, for an exact model at most about 1.
        gain: see :data:`MIN_GAIN`.
        least_gain: gain that an exact model of samples in [-b, b] has at least: (‖x‖² - √ᾱ b ‖x‖₁) / (d (1-ᾱ)); -∞
            where it is not asked for.
        excess: see :data:`MAX_EXCESS`.
        unavoidable: excess that no answer could avoid whose root mean square is 1, that of noise, because the samples
            themselves lie outside; 0 for samples at their noise level.
        echo: cosine of ε and x.
        noise_share: √(1-ᾱ) over the root mean square of x.
    """

    energy: float
    gain: float
    least_gain: float
    excess: float
    unavoidable: float
    echo: float
    noise_share: float

    @property
    def fault(self) -> str | None:
        """Why the answer cannot count, in words; None if it can."""
        return self.fault_within(1.0)

    def fault_within(self, leeway: float) -> str | None:
        """As :attr:`fault`, with the bounds of gain and excess loosened by a factor."""
        least = self.least_gain if self.least_gain < 0 else MIN_GAIN / leeway * min(self.least_gain, 1.0)
        if not self.gain >= least:
            return f"does not follow the noise: gain {self.gain:.3g} < {least:.3g}"
        most = MAX_EXCESS * leeway + self.unavoidable
        if not self.excess <= most:
            return f"implies no image: excess {self.excess:.3g} > {most:.3g}"
        if self.noise_share < ECHO_SHOWS and self.echo > ECHO:
            return f"repeats the samples it was asked about: cosine {self.echo:.4f}"
        return None


@dataclass(frozen=True)
class Screening:
    """Outcome of one round for samples of one class.

    Attributes:
        faults: silos to leave out, with the reason.
        equal: groups of the other silos that gave equal answers, ascending.
        alike: what the silos miss for which the bounds gave way, by silo; empty if they did not.
        statistics: measures of every silo that answered.
    """

    faults: dict[int, str]
    equal: tuple[tuple[int, ...], ...]
    alike: dict[int, str]
    statistics: dict[int, AnswerStatistics]


def screen(
    eps: torch.Tensor, x_t: torch.Tensor, alpha_bar: float, answered: torch.Tensor, bound: float = 1.0
) -> Screening:
    """Judge the answers about samples of one class at one timestep, in slices of samples.

    Args:
        eps: answers (K, n, C, H, W), finite where ``answered``; n·C·H·W of 64 at least, better 500.
        x_t: samples (n, C, H, W).
        alpha_bar: ᾱ_t in (0, 1).
        answered: bool (K,).
        bound: largest absolute value of clean samples, 1 for pixels.

    Returns:
        The outcome; nothing in it depends on the order of the silos.
    """
    statistics = answer_statistics(eps, x_t, alpha_bar, answered, bound)
    faults = {k: found.fault for k, found in statistics.items() if found.fault}
    beyond = {k: fault for k, found in statistics.items() if (fault := found.fault_within(LEEWAY))}
    alike = {k: fault for k, fault in faults.items() if k not in beyond}
    if len(alike) > max(1, len(statistics) / 2):
        faults = beyond
    else:
        alike = {}
    sound = {k: found for k, found in statistics.items() if k not in faults}
    return Screening(faults, equal_answers(eps, sound), alike, statistics)


def answer_statistics(
    eps: torch.Tensor, x_t: torch.Tensor, alpha_bar: float, answered: torch.Tensor, bound: float = 1.0
) -> dict[int, AnswerStatistics]:
    """Measure every silo that answered; arguments as in :func:`screen`."""
    silos = torch.nonzero(answered).flatten().tolist()
    noise_std = (1 - alpha_bar) ** 0.5
    signal = bound * alpha_bar**0.5
    x_sums = torch.zeros(3, dtype=torch.float64)
    sums = {k: torch.zeros(3, dtype=torch.float64) for k in silos}
    for rows in row_slices(eps):
        x = x_t[rows].double()
        beyond = (x.abs() - signal).clamp_(min=0)
        x_sums += torch.stack([x.square().sum(), x.abs().sum(), beyond.square_().sum()])
        del beyond
        for k in silos:
            answer = eps[k, rows].double()
            # |√ᾱ x_0| - √ᾱ b rather than |x_0| - b: dividing by √ᾱ_T would blow up every rounding error.
            outside = ((x - noise_std * answer).abs_() - signal).clamp_(min=0)
            sums[k] += torch.stack([answer.square().sum(), (answer * x).sum(), outside.square_().sum()])

    numbers = x_t.numel()
    x_square, x_size, beyond_square = x_sums.tolist()
    # The distance from a convex set falls by no more than the length of the step, here √(1-ᾱ) for an answer of size 1.
    unavoidable = max(0.0, (beyond_square / numbers) ** 0.5 - noise_std) / max(noise_std, LEAST_NOISE)
    statistics = {}
    for k in silos:
        square, product, outside_square = sums[k].tolist()
        least_gain = (x_square - signal * x_size) / (numbers * (1 - alpha_bar))
        statistics[k] = AnswerStatistics(
            energy=square / numbers,
            gain=product / (numbers * noise_std),
            least_gain=least_gain if noise_std >= LEAST_NOISE else -math.inf,
            excess=(outside_square / numbers) ** 0.5 / max(noise_std, LEAST_NOISE),
            unavoidable=unavoidable,
            echo=product / max((square * x_square) ** 0.5, 1e-30),
            noise_share=noise_std * (numbers / max(x_square, 1e-30)) ** 0.5,
        )
    return statistics


def median_answer(eps: torch.Tensor, answered: torch.Tensor) -> torch.Tensor:
    """Coordinate-wise median (n, C, H, W) of the answers (K, n, C, H, W), at least one of them ``answered``.

    Of an even number it is the mean of the middle two. Works in slices of samples.
    """
    median = torch.empty_like(eps[0])
    count = int(answered.sum())
    for rows in row_slices(eps):
        ordered = eps[:, rows][answered].sort(0).values
        median[rows] = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
    return median


def equal_answers(eps: torch.Tensor, statistics: dict[int, AnswerStatistics]) -> tuple[tuple[int, ...], ...]:
    """Group the silos in ``statistics`` whose answers ``eps`` differ by less than :data:`EQUAL` of their size."""
    groups = [{k} for k in statistics]
    norms = {k: found.energy**0.5 for k, found in statistics.items()}
    for one, other in combinations(norms, 2):
        # |‖a‖ - ‖b‖| ≤ ‖a - b‖, so that most pairs need no look at the answers.
        if abs(norms[one] - norms[other]) > 2 * EQUAL * norms[one]:
            continue
        mine, theirs = (next(group for group in groups if k in group) for k in (one, other))
        if mine is theirs:
            continue
        difference, square = 0.0, 0.0
        for rows in row_slices(eps[one : one + 1]):
            difference += float((eps[one, rows] - eps[other, rows]).double().square().sum())
            square += float(eps[one, rows].double().square().sum())
        if difference <= EQUAL**2 * square:
            mine |= theirs
            groups.remove(theirs)
    return tuple(sorted(tuple(sorted(group)) for group in groups if len(group) > 1))


def bound_weights(
    weights: torch.Tensor, max_weight: float = 1.0, equal: tuple[tuple[int, ...], ...] = ()
) -> torch.Tensor:
    """Have silos of equal answers share one weight, and leave no silo more than ``max_weight`` of a sample.

    A group has the weight of its heaviest member, in equal parts: who copied whom cannot be told. Then the weights
    w become min(c, s w), with s such that they sum to 1: what a silo has too much goes to the others in proportion
    to theirs. Where fewer than 1/c silos have any weight, c is 1 over their number: a single holder keeps 1.

    Args:
        weights: non-negative (K, n), every column with a positive sum; need not be normalised.
        max_weight: c in (0, 1].
        equal: groups of equal answers that all have a say.

    Returns:
        (K, n), columns summing to 1; nothing in it depends on the order of the silos.

    Raises:
        UserError: ``max_weight`` out of range.
    """
    if not 0 < max_weight <= 1:
        raise UserError(f"max-silo-weight = {max_weight}: must be > 0 and <= 1")
    merged = weights.double()
    for group in map(list, equal):
        heaviest = merged[group].max(0).values
        merged = merged.index_fill(0, torch.tensor(group), 0.0)
        merged[group[0]] = heaviest
    bounded = _capped(merged, max_weight)
    for group in map(list, equal):
        bounded[group] = bounded[group[0]] / len(group)
    return bounded.to(weights.dtype)


def _capped(weights: torch.Tensor, max_weight: float) -> torch.Tensor:
    ordered = weights.sort(0, descending=True).values
    cap = (weights > 0).sum(0).double().reciprocal().clamp(min=max_weight)
    # With the j heaviest at the cap, the others share 1 - j c: the least j that leaves nobody above it.
    rest = ordered.flip(0).cumsum(0).flip(0)
    taken = torch.arange(len(weights))[:, None] * cap
    scale = torch.where(rest > 0, (1 - taken) / rest, torch.inf)
    fits = (rest == 0) | (scale * ordered <= cap)
    least = torch.where(fits.any(0), fits.int().argmax(0), len(weights) - 1)
    chosen = scale.gather(0, least[None])
    return torch.where(weights > 0, torch.minimum(weights * chosen, cap), 0.0)
