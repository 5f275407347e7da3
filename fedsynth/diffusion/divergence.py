"""Divergence of a noise prediction, by one probe and a finite difference."""

from __future__ import annotations

import torch

from fedsynth.diffusion.sampling import PredictNoise
from fedsynth.seeding import make_generator

STEP = 1e-3
"""Length of the difference along the probe, in units of the noise √(1-ᾱ) on which ε changes: of lengths 1e-4, 1e-3,
3e-3, 1e-2, … the error is least there, 5e-5 to 9e-5 of the largest divergence (one network trained on digits, float32,
seven levels): below, rounding grows, above, curvature."""


def draw_probe(x: torch.Tensor, labels: torch.Tensor, seed: int) -> torch.Tensor:
    """Draw random signs (N, C, H, W), of each class by itself.

    So all silos that are asked about a class draw the same signs for it, whatever else they are asked about.

    Args:
        x: samples (N, C, H, W).
        labels: their classes (N,).
        seed: of the probe.
    """
    probe = torch.empty_like(x)
    for label in torch.unique(labels).tolist():
        rows = labels == label
        signs = torch.randint(2, probe[rows].shape, generator=make_generator(seed, "probe", label))
        probe[rows] = 2.0 * signs.to(x.dtype) - 1.0
    return probe


def estimate_divergence(
    predict_noise: PredictNoise,
    x: torch.Tensor,
    t: int,
    labels: torch.Tensor,
    epsilon: torch.Tensor,
    alpha: float,
    seed: int,
) -> torch.Tensor:
    """Hutchinson's estimate (1990) of Σ_j ∂ε_j/∂x_j by one probe: v·(ε(x + h v) - ε(x)) / h.

    Args:
        predict_noise: noise prediction ε(x_t, t, y).
        x: samples (N, C, H, W).
        t: their timestep.
        labels: classes (N,).
        epsilon: ε(x, t, y), known already.
        alpha: ᾱ_t in (0, 1).
        seed: of the probe.

    Returns:
        (N,) float32.
    """
    probe, length = draw_probe(x, labels, seed), STEP * (1 - alpha) ** 0.5
    change = predict_noise(x + length * probe, t, labels) - epsilon
    divergence: torch.Tensor = (change * probe).flatten(1).sum(1).float() / length
    return divergence
