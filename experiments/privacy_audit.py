"""What an attack finds of a private training's ε: a lower bound, to hold against the one that is claimed.

Many small trainings of the product's own DP-SGD, half of them with one more image, the canary. An attacker who knows
everything but whether it was there (Nasr et al. 2021, arXiv 2101.04535) guesses from the noised sums of all steps, and
another one from the final weights. Guesses that are right too often prove an ε (Jagielski et al. 2020, arXiv
2006.07709): it lies below the claimed one, unless the noise is too small, as rows with half of it and with none show.
The canary is of a class of its own, so that its gradient lies where no other image's does (a Dirac canary, Nasr et al.
2023, arXiv 2302.07956). ``python -m experiments.privacy_audit`` prints the table.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import cast
from unittest import mock

import numpy as np
import torch
from diffusers import UNet2DModel
from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import binomtest, norm
from torch import nn

from experiments.benchmarks.common import markdown_table, origin
from fedsynth.config import RECIPES
from fedsynth.diffusion import TrainingState
from fedsynth.privacy import Mechanism, dp_training, epsilon, noise_multiplier_for
from fedsynth.privacy.dp_training import DPSGD, train_privately
from fedsynth.privacy.gradients import gaussian_noise
from fedsynth.seeding import make_generator

DELTA = 1e-5
CONFIDENCE = 0.95
SIDE, CLASSES, IMAGES = 4, 3, 8
CANARY = CLASSES - 1
"""Class of the canary, which no other image has."""
RECIPE = RECIPES["default"].model_copy(update={"warmup_steps": 0, "loss_weighting": "uniform", "codec": "pixels"})
CLAIMS = ((1.0, 1.0, 2), (3.0, 1.0, 2), (3.0, 0.5, 4))
"""ε, sampling rate and steps of the trainings."""
NOISE_MULTIPLIERS = (0.2, 100.0)
"""Noise that an audit tells apart."""
INTERVAL, TOLERANCE = 5e-3, 5e-3
"""Width of the cells of a privacy loss distribution, which is rounded up, and of log σ: both make a bound smaller."""
COLUMNS = (
    "claimed ε",
    "sampling rate",
    "steps",
    "noise",
    "ε at least",
    "if DP-SGD",
    "if DP-SGD, by weights alone",
)
NOISES = {"as claimed": 1.0, "half": 0.5, "none": 0.0}
"""Name -> share of the noise that the claim asks for."""

Scores = NDArray[np.float64]


class Denoiser(nn.Module):
    """320 weights that answer as a U-Net does: a linear map of image and timestep, and a row for each class."""

    def __init__(self) -> None:
        super().__init__()
        pixels = SIDE**2
        self.map = nn.Parameter(torch.zeros(pixels, pixels))
        self.level = nn.Parameter(torch.zeros(pixels))
        self.rows = nn.Parameter(torch.zeros(CLASSES, pixels))

    def forward(self, x: torch.Tensor, t: torch.Tensor, class_labels: torch.Tensor) -> SimpleNamespace:
        """Return an object whose ``sample`` is the prediction (n, 1, 4, 4)."""
        share = t[:, None] / RECIPE.num_train_timesteps
        # The class decides most, so that a clipped gradient of the canary has nearly its whole norm in its own row.
        flat = x.flatten(1) @ self.map / SIDE + share * self.level + 30 * self.rows[class_labels]
        return SimpleNamespace(sample=flat.view_as(x))


@dataclass(frozen=True)
class Attacks:
    """What two attackers make of every training: the higher, the likelier the canary was there.

    Attributes:
        steps: log-likelihood ratio of the noised sums of all steps (trainings,).
        weights: how far the final weights lie on the canary's side (trainings,).
    """

    steps: Scores
    weights: Scores


def attack(claim: Mechanism, with_canary: bool, noise: float, trainings: int, seed: int) -> Attacks:
    """Train many times, and attack every training.

    Args:
        claim: mechanism that is claimed; the attackers know it.
        with_canary: whether the canary is among the images.
        noise: share of its noise that is drawn.
        trainings: how many.
        seed: of batches and noise, which are the silo's secret otherwise.
    """
    images = torch.rand(IMAGES + 1, 1, SIDE, SIDE, generator=make_generator(seed, "images")) * 2 - 1
    images[-1] = 1.0
    labels = torch.tensor([number % CANARY for number in range(IMAGES)] + [CANARY])
    kept = IMAGES + with_canary
    training = DPSGD(claim, clip=1.0, multiplicity=1, denominator=claim.sampling_rate * IMAGES)
    found = np.empty((2, trainings))
    with noise_times(noise):
        for number in range(trainings):
            generator = make_generator(seed, "training", number, int(with_canary))
            network = Denoiser()
            state = TrainingState(cast(UNet2DModel, network), RECIPE, generator, claim.steps)
            sums: list[float] = []

            def note(step: int, network: Denoiser = network, sums: list[float] = sums) -> None:
                assert network.rows.grad is not None
                # A white canary pulls all pixels of its row up: that way its gradient has norm 1, clipped.
                sums.append(-float(network.rows.grad[CANARY].sum()) / SIDE * training.denominator)

            train_privately(state, images[:kept], labels[:kept], training, claim.steps, on_step=note)
            found[:, number] = log_likelihood_ratio(np.array(sums), claim), float(network.rows[CANARY].detach().sum())
    return Attacks(*found)


def log_likelihood_ratio(sums: Scores, claim: Mechanism) -> float:
    """Return log p(sums | canary) - log p(sums | none), of sums that the canary, if it is drawn, moves by 1."""
    sigma, rate = claim.noise_multiplier, claim.sampling_rate
    moved = (sums - 0.5) / sigma**2
    with np.errstate(divide="ignore"):
        return float(np.logaddexp(np.log(1 - rate), np.log(rate) + moved).sum())


@dataclass(frozen=True)
class Rates:
    """How often an attacker's guess "it was there" was right at least, and wrong at most.

    Ends of Clopper-Pearson intervals that hold together with confidence .95.
    """

    true_positives: float
    false_positives: float

    @classmethod
    def of(cls, hits: int, false_alarms: int, trainings: int) -> Rates:
        """Return the rates of so many trainings with the canary, of which ``hits``, and without it, of which..."""
        level = 1 - (1 - CONFIDENCE) / 2
        low = binomtest(hits, trainings, alternative="greater").proportion_ci(level, "exact").low
        high = binomtest(false_alarms, trainings, alternative="less").proportion_ci(level, "exact").high
        return cls(float(low), float(high))

    def epsilon(self, delta: float = DELTA) -> float:
        """Return the ε that they prove of whatever made the weights, at least 0.

        (ε, δ)-differential privacy allows e^ε · false + δ true positives at most (Kairouz et al. 2015, arXiv
        1311.0776). So many trainings prove little where δ is small: a few rare outcomes would decide.
        """
        proven = (self.true_positives - delta) / self.false_positives
        return max(0.0, math.log(proven)) if proven > 0 else 0.0

    def noise(self, claim: Mechanism) -> float:
        """Return the largest noise multiplier with which the claimed mechanism allows them (Nasr et al. 2023, Sec. 4).

        Of all ε at once, each with the δ that belongs to it, so that all trainings count, not only rare ones; but it
        holds of nothing else than DP-SGD with another noise.
        """
        epsilons = np.linspace(0, 12, 121)

        def excess(log_noise: float) -> float:
            one = from_gaussian_mechanism(
                math.exp(log_noise), sampling_prob=claim.sampling_rate, value_discretization_interval=INTERVAL
            )
            losses = one.self_compose(claim.steps)
            allowed = np.exp(epsilons) * self.false_positives + losses.get_delta_for_epsilon(epsilons)
            return float((self.true_positives - allowed).max())

        least, most = map(math.log, NOISE_MULTIPLIERS)
        if excess(most) <= 0 or excess(least) >= 0:
            return math.exp(most if excess(most) <= 0 else least)
        # A root finder's answer may lie on either side of the root: more noise is the smaller claim.
        return math.exp(brentq(excess, least, most, xtol=TOLERANCE) + TOLERANCE)

    @property
    def separation(self) -> float:
        """How far apart two normal distributions with these rates lie, in standard deviations."""
        return float(norm.ppf(self.true_positives) - norm.ppf(self.false_positives))


def best_rates(with_canary: Scores, without: Scores, goal: Callable[[Rates], float]) -> Rates:
    """Return the rates of the best threshold: it is chosen on a quarter of the trainings, and measured on the others.

    Args:
        with_canary: scores of trainings with the canary (n,), n >= 4.
        without: of as many without.
        goal: what is to be large.
    """
    quarter = len(with_canary) // 4
    # That a training has no canary can be guessed, too.
    sides = [(with_canary, without), (-without, -with_canary)]
    places = [(side, level) for side in sides for level in np.quantile(side[1][:quarter], np.linspace(0, 1, 101))]

    def rates(side: tuple[Scores, Scores], level: float, part: slice) -> Rates:
        hits, false_alarms = (int((scores[part] > level).sum()) for scores in side)
        return Rates.of(hits, false_alarms, len(side[0][part]))

    best, level = max(places, key=lambda place: goal(rates(place[0], place[1], slice(quarter))))
    return rates(best, level, slice(quarter, None))


@contextmanager
def noise_times(share: float) -> Iterator[None]:
    """Have all private training draw a share of its noise only: the mistake that an audit is to find."""

    def less(parameters: dict[str, torch.Tensor], std: float, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return gaussian_noise(parameters, share * std, generator)

    with mock.patch.object(dp_training, "gaussian_noise", less):
        yield


@dataclass(frozen=True)
class Audit:
    """What is claimed of a training's ε, and what attacks prove.

    Attributes:
        claimed: by the accountant.
        proven: from the noised sums, of whatever made them.
        proven_of_sums: from the noised sums, if they are those of DP-SGD with some noise.
        proven_of_weights: from the final weights, if they are those of DP-SGD with some noise.
    """

    claimed: float
    proven: float
    proven_of_sums: float
    proven_of_weights: float


def audited(target: float, rate: float, steps: int, noise: float, trainings: int, seed: int) -> Audit:
    """Audit trainings whose noise follows from a target.

    Args:
        target: ε.
        rate: sampling rate.
        steps: of a training.
        noise: share of the claimed noise that is drawn.
        trainings: with the canary, and as many without.
        seed: of everything.
    """
    claim = Mechanism(noise_multiplier_for(target, DELTA, rate, steps), rate, steps)
    there, absent = (attack(claim, kind, noise, trainings, seed) for kind in (True, False))

    def as_dpsgd(with_canary: Scores, without: Scores) -> float:
        found = best_rates(with_canary, without, lambda rates: rates.separation).noise(claim)
        return epsilon([replace(claim, noise_multiplier=found)], DELTA)

    return Audit(
        epsilon([claim], DELTA),
        best_rates(there.steps, absent.steps, Rates.epsilon).epsilon(),
        as_dpsgd(there.steps, absent.steps),
        as_dpsgd(there.weights, absent.weights),
    )


def main() -> None:
    """Audit every claim with every noise, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trainings", type=int, default=1000, help="with the canary, and as many without")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    start, rows = time.process_time(), []
    for target, rate, steps in CLAIMS:
        for name, noise in NOISES.items():
            audit = audited(target, rate, steps, noise, options.trainings, options.seed)
            found = (audit.proven, audit.proven_of_sums, audit.proven_of_weights)
            cells = [f"{value:.2f}{' > claimed' if value > audit.claimed else ''}" for value in found]
            row = [f"{audit.claimed:.2f}", f"{rate:g}", f"{steps}", name, *cells]
            rows.append(dict(zip(COLUMNS, row, strict=True)))
    seconds = time.process_time() - start
    print(f"{options.trainings} trainings each with and without the canary, confidence {CONFIDENCE}, {seconds:.0f} s\n")
    print(f"{origin()}\n\n{markdown_table(rows)}")


if __name__ == "__main__":
    main()
