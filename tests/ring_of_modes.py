"""A mixture of three silos in the plane whose noise predictions are known exactly."""

from __future__ import annotations

import math

import numpy as np
import torch
from diffusers import DDPMScheduler
from exact_networks import PAPER, as_predicted

from fedsynth.config import Recipe
from fedsynth.diffusion import make_scheduler, noise_schedule
from fedsynth.diffusion.noise_levels import to_noise
from fedsynth.diffusion.recipe import DIFFUSERS_PREDICTION
from fedsynth.mixture import PathPosterior, compose, energy, responsibilities


def respaced(rounds: int, recipe: Recipe = PAPER) -> DDPMScheduler:
    """Ancestral moves along the levels of our own sampler, which would cut modes off at its range."""
    scheduler = DDPMScheduler(**noise_schedule(recipe), clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(timesteps=make_scheduler(recipe, rounds).timesteps.tolist())
    return scheduler


class RingOfModes:
    """Eight narrow Gaussians on a circle: six equal ones at the first silo, one at each of two others."""

    SHARES = (0.6, 0.3, 0.1)
    STD = 0.05

    def __init__(self) -> None:
        angles = torch.arange(8) * (2 * math.pi / 8)
        self.modes = torch.stack([angles.cos(), angles.sin()], 1)
        self.silos = [self.modes[:6], self.modes[6:7], self.modes[7:]]
        self.truth = np.array([0.1] * 6 + [0.3, 0.1])

    def exact_eps(self, x: torch.Tensor, alpha_bar: torch.Tensor, modes: torch.Tensor) -> torch.Tensor:
        """-√(1-ᾱ) ∇ log p_t(x) of an equal mixture of ``modes``."""
        variance = alpha_bar * self.STD**2 + 1 - alpha_bar
        offsets = x.flatten(1)[:, None] - alpha_bar.sqrt() * modes
        shares = torch.softmax(-offsets.square().sum(2) / (2 * variance), dim=1)
        score = -(shares[..., None] * offsets).sum(1) / variance
        return (-(1 - alpha_bar).sqrt() * score)[..., None, None]

    def answers(self, x: torch.Tensor, alpha_bar: torch.Tensor, recipe: Recipe, error: float) -> torch.Tensor:
        """ε (3, N, 2, 1, 1) of networks that predict as ``recipe`` says, each wrong in its own way by ``error``."""
        eps, level = [], float(alpha_bar)
        for silo, modes in enumerate(self.silos):
            exact = self.exact_eps(x, alpha_bar, modes)
            said = as_predicted(exact, x, level, recipe.prediction) + error * torch.sin(40 * x + silo)
            eps.append(to_noise(said, x, level, DIFFUSERS_PREDICTION[recipe.prediction]))
        return torch.stack(eps)

    def distance(self, kind: str, num_samples: int, rounds: int, recipe: Recipe = PAPER, error: float = 0.0) -> float:
        """Total variation distance between the mode frequencies of composed samples and the truth."""
        scheduler, generator = respaced(rounds, recipe), torch.Generator().manual_seed(0)
        x = torch.randn(num_samples, 2, 1, 1, generator=generator)
        prior = torch.tensor(self.SHARES).double().log()
        posterior = PathPosterior(prior)
        for t in scheduler.timesteps.tolist():
            alpha_bar = scheduler.alphas_cumprod[t]
            eps = self.answers(x, alpha_bar, recipe, error)
            weights = posterior.weights if kind == "posterior" else responsibilities(prior, energy(eps), 1.0)
            moved = scheduler.step(compose(eps, weights), t, x, generator=generator).prev_sample
            posterior.update(x, moved, eps, scheduler, t)
            x = moved
        nearest = torch.cdist(x.flatten(1), self.modes).argmin(1)
        return self.from_truth(np.bincount(nearest, minlength=8) / num_samples)

    def from_truth(self, frequencies: np.ndarray) -> float:
        return 0.5 * float(np.abs(frequencies - self.truth).sum())
