"""A mixture of three silos in the plane whose noise predictions are known exactly."""

from __future__ import annotations

import math

import numpy as np
import torch
from diffusers import DDPMScheduler

from fedsynth.mixture import PathPosterior, compose, energy, responsibilities


def respaced(rounds: int) -> DDPMScheduler:
    scheduler = DDPMScheduler(1000, beta_start=1e-4, beta_end=0.02, clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(rounds)
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

    def distance(self, kind: str, num_samples: int, rounds: int) -> float:
        """Total variation distance between the mode frequencies of composed samples and the truth."""
        scheduler, generator = respaced(rounds), torch.Generator().manual_seed(0)
        x = torch.randn(num_samples, 2, 1, 1, generator=generator)
        prior = torch.tensor(self.SHARES).double().log()
        posterior = PathPosterior(prior)
        for t in scheduler.timesteps.tolist():
            alpha_bar = scheduler.alphas_cumprod[t]
            eps = torch.stack([self.exact_eps(x, alpha_bar, modes) for modes in self.silos])
            weights = posterior.weights if kind == "posterior" else responsibilities(prior, energy(eps), 1.0)
            moved = scheduler.step(compose(eps, weights), t, x, generator=generator).prev_sample
            posterior.update(x, moved, eps, scheduler, t)
            x = moved
        nearest = torch.cdist(x.flatten(1), self.modes).argmin(1)
        return self.from_truth(np.bincount(nearest, minlength=8) / num_samples)

    def from_truth(self, frequencies: np.ndarray) -> float:
        return 0.5 * float(np.abs(frequencies - self.truth).sum())
