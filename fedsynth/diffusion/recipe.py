"""The arithmetic of a training recipe: targets, loss weights, optimiser and learning rate.

A network predicts ε, v or x_0 (``prediction``); with x_t = √ᾱ x_0 + √(1-ᾱ) ε each of them gives the others. What it
says becomes ε by one function, :func:`fedsynth.diffusion.noise_levels.to_noise`, before anything else sees it:
mixture, samplers, screening and membership inference know of ε alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from fedsynth.config import Recipe

DIFFUSERS_PREDICTION = {"epsilon": "epsilon", "v": "v_prediction", "x0": "sample"}
"""What a network predicts -> diffusers' name of it."""

BETA_SCHEDULES = {"linear": "linear", "scaled-linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
"""Noise schedule -> diffusers' name of it."""


def denoising_loss(
    predicted: torch.Tensor, clean: torch.Tensor, noise: torch.Tensor, alpha_bar: torch.Tensor, recipe: Recipe
) -> torch.Tensor:
    """Return the training loss of every sample (n,): the mean square error of what the recipe has a network predict.

    With ``loss-weighting = "min-snr"`` it is weighted so that the error of the implied x_0 counts min(SNR + 1, γ)
    times, SNR = ᾱ/(1-ᾱ): v's own weight (Salimans & Ho 2022, arXiv 2202.00512), cut off at γ as Hang et al. 2023
    (arXiv 2303.09556, Sec. 3.4) cut off the SNR. For ε it is their min(SNR, γ): at pure noise an ε hardly says anything
    of x_0. An error e of x_0 is one of √SNR·e of ε and of √(SNR + 1)·e of v.

    An x_0 is clipped to [-1, 1] wherever it is used. So where a pixel is black or white, -1 or 1, what a network says
    beyond that costs nothing: it need not hit a value exactly that clipping gives for nothing, and errors around it no
    longer leave a grey haze. Latents, which are exactly -1 or 1 nowhere, are not concerned.

    Args:
        predicted: output of the network (n, C, H, W).
        clean: x_0 (n, C, H, W).
        noise: ε (n, C, H, W).
        alpha_bar: ᾱ of every sample (n,), in (0, 1).
        recipe: prediction and weighting.
    """
    signal, noise_std = (root[:, None, None, None] for root in (alpha_bar.sqrt(), (1 - alpha_bar).sqrt()))
    target = {"epsilon": noise, "x0": clean, "v": signal * noise - noise_std * clean}[recipe.prediction]
    errors = predicted - target
    if recipe.prediction == "x0":
        clipped_away = (clean.abs() == 1) & (predicted * clean > 1)
        errors = errors.masked_fill(clipped_away, 0)
    return errors.square().flatten(1).mean(1) * _weights(alpha_bar, recipe)


def loss_of_zero(alphas_cumprod: torch.Tensor, power: float, recipe: Recipe) -> float:
    """Return the mean :func:`denoising_loss` of a network that answers 0 whatever it is asked, as one does at first.

    Args:
        alphas_cumprod: ᾱ of every timestep (T,).
        power: mean square of the clean samples.
        recipe: prediction and weighting.
    """
    alpha_bar = alphas_cumprod.double()
    ones = torch.ones_like(alpha_bar)
    squares = {"epsilon": ones, "x0": power * ones, "v": alpha_bar + (1 - alpha_bar) * power}[recipe.prediction]
    return float((squares * _weights(alpha_bar, recipe)).mean())


def _weights(alpha_bar: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    if recipe.loss_weighting == "uniform":
        return torch.ones_like(alpha_bar)
    snr = alpha_bar / (1 - alpha_bar)
    if recipe.prediction == "epsilon":
        return snr.clamp(max=recipe.snr_gamma) / snr
    return (snr + 1).clamp(max=recipe.snr_gamma) / (snr + 1 if recipe.prediction == "v" else 1)


def make_optimizer(parameters: Iterable[torch.nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """Return the recipe's optimiser: Adam (Kingma & Ba 2015) or AdamW (Loshchilov & Hutter 2019)."""
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=recipe.learning_rate, fused=True)


def learning_rate(recipe: Recipe, step: int, total_steps: int) -> float:
    """Return the learning rate of a step: linear warm-up, then constant or half a cosine down to 0.

    Args:
        recipe: highest rate, ``warmup-steps`` and ``learning-rate-decay``.
        step: steps done before, from 0.
        total_steps: steps of the whole training; later ones have the rate of the last.
    """
    # A short training must not be spent on its warm-up.
    warmup = min(recipe.warmup_steps, total_steps // 4)
    rate = recipe.learning_rate * min(1.0, (step + 1) / (warmup + 1))
    if recipe.learning_rate_decay == "cosine":
        rate *= (1 + math.cos(math.pi * min(step, total_steps - 1) / total_steps)) / 2
    return rate
