"""Between two noise schedules: where one model finds the noise level of another."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True)
class Level:
    """How a model is asked about samples x at a level of the run's schedule.

    Attributes:
        timestep: what its network is told; fractional between two of its own levels.
        alpha_bar: ᾱ of the samples, in (0, 1).
        own_alpha_bar: ᾱ' of the level that the network takes its input for.
        scale: its input is ``scale`` · x.
    """

    timestep: float
    alpha_bar: float
    own_alpha_bar: float
    scale: float

    @property
    def exact(self) -> bool:
        """Whether the network answers at the very level of the samples."""
        return self.alpha_bar == self.own_alpha_bar

    def to_run(self, own_eps: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return ε at the level of ``x`` for a prediction at the network's, keeping what it says about x_0.

        x̂_0 = (scale · x - √(1-ᾱ') ε') / √ᾱ', and ε = (x - √ᾱ x̂_0) / √(1-ᾱ) (Ho et al. 2020, Eq. 4, twice).

        Args:
            own_eps: ε' (N, C, H, W).
            x: the samples (N, C, H, W).
        """
        if self.exact:
            return own_eps
        ratio = math.sqrt(self.alpha_bar / self.own_alpha_bar)
        noise_std = math.sqrt(1 - self.alpha_bar)
        kept = ratio * math.sqrt(1 - self.own_alpha_bar) / noise_std
        return own_eps * kept + x * ((1 - ratio * self.scale) / noise_std)


def match_levels(alpha_bars: NDArray[np.float64], own_alpha_bars: NDArray[np.float64], fractional: bool) -> list[Level]:
    """Find, for every level of the run, the level of a model with the same signal-to-noise ratio ᾱ/(1-ᾱ).

    Both processes preserve variance, so that x_t is the same at equal ᾱ. Between two levels of the model its timestep
    is interpolated linearly in the log of the ratio. Where the ratios cannot be made equal the nearest level stands in:

    - rounded timesteps, and samples cleaner than the model's cleanest level: the input is √(ᾱ'/ᾱ) · x, with the same
      image under the noise; the model takes the noise for another amount of it.
    - samples noisier than its noisiest level: the input is x itself, since both are noise of variance 1 nearly; the
      image under it, scaled up, would come with more noise than the network has ever seen.

    Args:
        alpha_bars: ᾱ_t of the run (T,), decreasing, in (0, 1).
        own_alpha_bars: ᾱ'_t of the model (T',), decreasing, in [0, 1); levels without any signal are not used.
        fractional: whether the network takes timesteps between whole ones.
    """
    own = own_alpha_bars[own_alpha_bars > 0]
    timesteps = np.interp(-_log_snr(alpha_bars), -_log_snr(own), np.arange(len(own), dtype=np.float64))
    if not fractional:
        timesteps = timesteps.round()
    levels = []
    for alpha_bar, timestep in zip(alpha_bars.tolist(), timesteps.tolist(), strict=True):
        own_alpha_bar = float(own[int(timestep)]) if timestep.is_integer() else alpha_bar
        scale = 1.0 if alpha_bar < own[-1] else math.sqrt(own_alpha_bar / alpha_bar)
        levels.append(Level(timestep, alpha_bar, own_alpha_bar, scale))
    return levels


def _log_snr(alpha_bars: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.log(alpha_bars) - np.log1p(-alpha_bars))


def timestep_at(alphas_cumprod: torch.Tensor, alpha_bar: float) -> int:
    """Return the timestep of a schedule, ᾱ (T,), whose signal-to-noise ratio is nearest to that of ``alpha_bar``."""
    differences = _log_snr(alphas_cumprod.double().numpy()) - _log_snr(np.asarray(alpha_bar))
    return int(np.abs(differences).argmin())


def to_noise(
    prediction: torch.Tensor, x: torch.Tensor, alpha_bar: float, prediction_type: str, bound: float = 1.0
) -> torch.Tensor:
    """Turn what a network predicts into ε, at the level of its input.

    With x = √ᾱ x_0 + √(1-ᾱ) ε (Ho et al. 2020, Eq. 4): for ``sample``, which predicts x_0, ε = (x - √ᾱ x_0) / √(1-ᾱ);
    for ``v_prediction``, v = √ᾱ ε - √(1-ᾱ) x_0 (Salimans & Ho 2022, arXiv 2202.00512, Sec. 4), ε = √ᾱ v + √(1-ᾱ) x.
    A predicted x_0 is first clipped to the range of clean samples, beyond which a network says what it likes.

    Args:
        prediction: output of the network (N, C, H, W).
        x: its input (N, C, H, W).
        alpha_bar: ᾱ in (0, 1).
        prediction_type: one of :data:`PREDICTION_TYPES`.
        bound: largest absolute value of clean samples.
    """
    signal = math.sqrt(alpha_bar)
    noise_std = math.sqrt(1 - alpha_bar)
    if prediction_type == "v_prediction":
        return signal * prediction + noise_std * x
    if prediction_type == "sample":
        return (x - signal * prediction.clamp(-bound, bound)) / noise_std
    return prediction


def from_noise(
    eps: torch.Tensor, x: torch.Tensor, alpha_bar: float, prediction_type: str, bound: float = 1.0
) -> torch.Tensor:
    """Turn ε into what a network of another prediction would have said: the inverse of :func:`to_noise`.

    The x_0 that ε implies is clipped to the range of clean samples, as samplers clip it: near pure noise an error of ε
    is one of 1/√ᾱ times as much of x_0.

    Args:
        eps: noise prediction (N, C, H, W).
        x: samples it is about (N, C, H, W).
        alpha_bar: ᾱ in (0, 1).
        prediction_type: one of :data:`PREDICTION_TYPES`.
        bound: largest absolute value of clean samples.
    """
    if prediction_type == "epsilon":
        return eps
    signal = math.sqrt(alpha_bar)
    noise_std = math.sqrt(1 - alpha_bar)
    clean = ((x - noise_std * eps) / signal).clamp(-bound, bound)
    return clean if prediction_type == "sample" else (signal * x - clean) / noise_std
