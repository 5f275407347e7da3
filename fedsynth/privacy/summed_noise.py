"""How silos share the noise of a secure sum of gradients: how much each adds, and in which whole numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedsynth.config.types import LEAST_SILOS
from fedsynth.errors import UserError
from fedsynth.privacy.accounting import Mechanism
from fedsynth.privacy.discrete_gaussian import LEAST_STD, LOST_VARIANCE, MOST_STD
from fedsynth.privacy.gradients import MOST_NORM
from fedsynth.privacy.sums.terms import SumError, threshold

_LARGEST_SUM = 2**31 - 1
"""Of what a sum modulo 2³² can stand for, in size."""
_TAILS = 12
"""Standard deviations of the noise that a sum has room for."""


@dataclass(frozen=True)
class SummedNoise:
    """The noise of one sum over K silos, of which each adds a share of its own.

    The sum is opened only if ``threshold`` silos are in it. Of these, ``colluders`` may tell the server their shares,
    who takes them off again. m = threshold - colluders others are left, and the noise of these alone is what
    ``noise_multiplier`` says. Whoever sees what the sum led to, and knows no share, faces the noise of all of them.

    Attributes:
        noise_multiplier: σ of the sum, towards the server and the silos that help it.
        silos: K, those that are asked.
        colluders: silos that may help the server.
        norm: Δ, by which one image changes the sum at most, in whole numbers.

    Raises:
        SumError: with so many colluders nobody else is left, or the server could open what it likes.
        UserError: a share is too large for the whole numbers.
    """

    noise_multiplier: float
    silos: int
    colluders: int
    norm: int

    def __post_init__(self) -> None:
        _ = self.honest
        if self.share > MOST_STD:
            raise UserError(f"noise of {self.share} whole numbers at a silo: must be <= {MOST_STD}; raise dp-epsilon")

    @property
    def honest(self) -> int:
        """m, silos of an opened sum that tell nobody their shares, at least."""
        return honest_silos(self.silos, self.colluders)

    @property
    def share(self) -> int:
        """Standard deviation of what one silo adds: together, m silos add what the proof asks for, or a little more.

        See :mod:`fedsynth.privacy.discrete_gaussian`.
        """
        needed = (self.noise_multiplier * self.norm) ** 2 + LOST_VARIANCE
        return max(LEAST_STD, int(math.sqrt(needed / self.honest)) + 1)

    def towards_server(self, sampling_rate: float, steps: int = 1) -> Mechanism:
        """Return what the silos' sums cost towards a server that ``colluders`` of them help."""
        return Mechanism(self.noise_multiplier, sampling_rate, steps)

    def towards_public(self, sampling_rate: float, steps: int = 1) -> Mechanism:
        """Return what they cost towards those who see what became of the sums, and know no silo's share."""
        noise = self.noise_multiplier * math.sqrt(threshold(self.silos) / self.honest)
        return Mechanism(noise, sampling_rate, steps)


def honest_silos(silos: int, colluders: int) -> int:
    """Return m = t - colluders, t = :func:`~fedsynth.privacy.sums.threshold` of the silos.

    Raises:
        SumError: fewer than three silos; m would be below 1; or so many silos could have the server open two sums, see
            :mod:`fedsynth.privacy.sums`.
    """
    if silos < LEAST_SILOS:
        raise SumError(f"num-clients = {silos} with strategy = 'dp-sum': must be >= {LEAST_SILOS}, for sums to hide")
    needed = threshold(silos)
    most = min(needed - 1, 2 * needed - silos - 1)
    if not 0 <= colluders <= most:
        raise SumError(f"dp-colluders = {colluders}: must be 0 to {most} with {silos} silos")
    return needed - colluders


def fitting_norm(noise_multiplier: float, silos: int, colluders: int, told_images: int, weights: int) -> int:
    """Return the largest Δ with which a sum fits into 32 bits, if no more than twice the images told are in it.

    What does not fit costs no privacy: a weight's gradient is then wrong.

    Args:
        noise_multiplier, silos, colluders: as of :class:`SummedNoise`.
        told_images: images of all silos together, as they tell them.
        weights: of the network.

    Raises:
        SumError: as :class:`SummedNoise`.
        UserError: whole numbers of so many bits would be too coarse for this network.
    """
    honest = honest_silos(silos, colluders)
    room = 2 * max(1, told_images) + _TAILS * noise_multiplier * math.sqrt(silos / honest)
    of_share = (MOST_STD - 1) * math.sqrt(honest) / (noise_multiplier + math.sqrt(LOST_VARIANCE))
    norm = min(MOST_NORM, int(_LARGEST_SUM / room), int(of_share))
    if norm < 2 * math.sqrt(weights):
        raise UserError(
            f"a network of {weights:,} weights and {told_images:,} images with a noise multiplier of"
            f" {noise_multiplier:.3g}: gradients would be too coarse in sums of 32 bits; choose a smaller model"
        )
    return norm
