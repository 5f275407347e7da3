"""What mechanisms cost together: ε at a δ by privacy loss distributions, and the noise that a target needs.

Neighbouring data sets differ by one record that is there or not (add/remove one image). All mechanisms here may be
chosen in view of the answers of those before, as long as each is what it says (adaptive composition).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

INTERVAL = 1e-4
"""Width of the cells of a privacy loss distribution: ε is rounded up by about as much for each mechanism."""
NOISE_MULTIPLIERS = (0.05, 1e6)
"""Noise multipliers that can be accounted for: with less noise ε is some hundred for a single step on all records."""


@dataclass(frozen=True)
class Mechanism:
    """Steps of the Gaussian mechanism on Poisson samples, as in DP-SGD (Abadi et al. 2016, arXiv 1607.00133).

    Every record is in a step's sample independently with probability q; the sum of the sampled records' vectors, each
    of norm C at most, gets Gaussian noise of standard deviation σC in every coordinate. With q = 1 and one step it is
    the Gaussian mechanism itself.

    Attributes:
        noise_multiplier: σ, from .05 to a million.
        sampling_rate: q, 0 < q <= 1.
        steps: how many, >= 0.

    Raises:
        ValueError: a value out of its range.
    """

    noise_multiplier: float
    sampling_rate: float = 1.0
    steps: int = 1

    def __post_init__(self) -> None:
        least, most = NOISE_MULTIPLIERS
        if not least <= self.noise_multiplier <= most:
            raise ValueError(f"noise multiplier {self.noise_multiplier}: must be from {least:g} to {most:g}")
        if not 0 < self.sampling_rate <= 1:
            raise ValueError(f"sampling rate {self.sampling_rate}: must be > 0 and <= 1")
        if self.steps < 0:
            raise ValueError(f"{self.steps} steps: must be >= 0")

    def losses(self) -> PrivacyLossDistribution | None:
        """Return the privacy loss distribution; None of no steps."""
        one = _distributions().from_gaussian_mechanism(
            self.noise_multiplier, sampling_prob=self.sampling_rate, value_discretization_interval=INTERVAL
        )
        return one.self_compose(self.steps) if self.steps else None


@dataclass(frozen=True)
class Geometric:
    """Two-sided geometric noise on whole numbers, the discrete Laplace mechanism (Ghosh et al. 2012).

    Attributes:
        scale: of the noise, > 0; one release is (sensitivity / scale, 0)-differentially private.
        sensitivity: by how much one record changes the numbers in sum, >= 1.

    Raises:
        ValueError: a value out of its range.
    """

    scale: float
    sensitivity: int = 1

    def __post_init__(self) -> None:
        if not (0 < self.scale < math.inf and self.sensitivity >= 1):
            raise ValueError(f"scale {self.scale}, sensitivity {self.sensitivity}: must be > 0 and >= 1")

    def losses(self) -> PrivacyLossDistribution | None:
        """Return the privacy loss distribution."""
        return _distributions().from_discrete_laplace_mechanism(
            1 / self.scale, self.sensitivity, value_discretization_interval=INTERVAL
        )


AnyMechanism = Mechanism | Geometric


def epsilon(mechanisms: Iterable[AnyMechanism], delta: float) -> float:
    """Return the ε at which all mechanisms together are (ε, δ)-differentially private as to one record more or less.

    An upper bound by privacy loss distributions (Koskela et al. 2020, arXiv 1906.03049; Doroshenko et al. 2022, arXiv
    2207.04380), as dp-accounting computes them.

    Args:
        mechanisms: everything that touches the records; none: 0.
        delta: δ, 0 < δ < 1.

    Returns:
        ε >= 0; infinity where δ is too small for any.
    """
    _check_delta(delta)
    return _epsilon(_composed(mechanisms), delta)


def noise_multiplier_for(
    epsilon: float, delta: float, sampling_rate: float, steps: int, before: Iterable[AnyMechanism] = ()
) -> float:
    """Return the least σ with which DP-SGD is (ε, δ)-differentially private, within a part in 10,000 above it.

    Args:
        epsilon: target, > 0.
        delta: δ, 0 < δ < 1.
        sampling_rate: q, 0 < q <= 1.
        steps: >= 1.
        before: mechanisms that the target covers as well.

    Raises:
        ValueError: a value out of its range; or no noise multiplier reaches the target, such as after ``before``.
    """
    _check_delta(delta)
    if not 0 < epsilon < math.inf or steps < 1:
        raise ValueError(f"ε = {epsilon} in {steps} steps: must be > 0 and >= 1")
    spent = _composed(before)
    if _epsilon(spent, delta) >= epsilon:
        raise ValueError(f"ε = {epsilon}: no noise is enough after what was spent before")

    @cache  # the root finder asks again for the ends
    def excess(log_noise: float) -> float:
        own = Mechanism(math.exp(log_noise), sampling_rate, steps).losses()
        found = _epsilon(own if spent is None else spent.compose(own), delta)
        return math.log(found / epsilon) if found else -1.0

    least, most = (math.log(bound) for bound in NOISE_MULTIPLIERS)
    # Where σ is large, DP-SGD is nearly a Gaussian mechanism of noise σ / (q √T).
    low = high = min(max(math.log(sampling_rate * math.sqrt(2 * steps * -math.log(delta)) / epsilon), least), most)
    while excess(low) <= 0:
        if low == least:
            return NOISE_MULTIPLIERS[0]
        high, low = low, max(low - 0.5, least)
    while high == low or excess(high) > 0:
        if high == most:
            raise ValueError(f"ε = {epsilon}: no noise multiplier up to {NOISE_MULTIPLIERS[1]:g} is enough")
        high = min(high + 0.5, most)
    from scipy.optimize import brentq  # only here: the commands of links and silos read accounts without it

    # A root finder's answer may lie on either side of the root: the larger one is private.
    found = float(brentq(excess, low, high, xtol=5e-6)) + 1e-5
    while excess(found) > 0:
        found += 1e-5
    return math.exp(found)


def _composed(mechanisms: Iterable[AnyMechanism]) -> PrivacyLossDistribution | None:
    """Return the privacy loss distribution of all together; None if nothing was done."""
    together: PrivacyLossDistribution | None = None
    for mechanism, times in Counter(mechanisms).items():
        one = mechanism.losses()
        if one is not None:
            several = one.self_compose(times) if times > 1 else one
            together = several if together is None else together.compose(several)
    return together


def _epsilon(losses: PrivacyLossDistribution | None, delta: float) -> float:
    return 0.0 if losses is None else max(0.0, float(losses.get_epsilon_for_delta(delta)))


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ValueError(f"δ = {delta}: must be > 0 and < 1")


def _distributions() -> Any:
    # Imported where something is accounted for: no command line needs it before.
    from dp_accounting.pld import privacy_loss_distribution

    return privacy_loss_distribution
