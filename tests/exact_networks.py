"""Networks of Gaussian data that say the posterior mean exactly, whatever they predict, and noise schedules by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedsynth.config import RECIPES, Recipe

MEAN, STD = 0.3, 0.2
"""Every pixel of the data is drawn from N(MEAN, STD²)."""

PAPER = RECIPES["paper"]
KINDS = {
    f"{prediction}-{schedule}": PAPER.model_copy(update={"prediction": prediction, "schedule": schedule})
    for prediction in ("epsilon", "v", "x0")
    for schedule in ("linear", "cosine")
}
"""A recipe of every prediction type and noise schedule."""


def alphas_of(schedule: str, steps: int = 1000) -> NDArray[np.float64]:
    """ᾱ (T,) as Ho et al. 2020 (linear) and Nichol & Dhariwal 2021, Eq. 17 (cosine, β at most 0.999) write it, or as
    Stable Diffusion has it (scaled-linear).
    """
    if schedule == "linear":
        return np.asarray(np.cumprod(1 - np.linspace(1e-4, 0.02, steps)))
    if schedule == "scaled-linear":
        return np.asarray(np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, steps) ** 2))
    level = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.asarray(np.cumprod(1 - np.minimum(1 - level[1:] / level[:-1], 0.999)))


def exact_eps(x: torch.Tensor, alpha_bar: float, mean: float = MEAN, std: float = STD) -> torch.Tensor:
    """E[ε | x_t] of N(mean, std²)."""
    return (x - math.sqrt(alpha_bar) * mean) * (math.sqrt(1 - alpha_bar) / (alpha_bar * std**2 + 1 - alpha_bar))


def as_predicted(eps: torch.Tensor, x: torch.Tensor, alpha_bar: float, prediction: str) -> torch.Tensor:
    """What a network says that means ``eps``."""
    clean = (x - math.sqrt(1 - alpha_bar) * eps) / math.sqrt(alpha_bar)
    velocity = math.sqrt(alpha_bar) * eps - math.sqrt(1 - alpha_bar) * clean
    return {"epsilon": eps, "x0": clean, "v": velocity}[prediction]


class ExactNetwork(torch.nn.Module):
    """Stands for a U-Net that was trained by ``recipe`` on the data until nothing was left to be learnt."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.alphas = alphas_of(recipe.schedule, recipe.num_train_timesteps)
        self.device_of = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor, t: Any, class_labels: torch.Tensor | None = None) -> SimpleNamespace:
        alpha_bar, exact = float(self.alphas[int(t)]), x.double()
        said = as_predicted(exact_eps(exact, alpha_bar), exact, alpha_bar, self.recipe.prediction)
        return SimpleNamespace(sample=said.float())
