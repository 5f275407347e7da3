"""Flow matching along straight lines: a recipe of :mod:`experiments.recipes`, by which the product does not train.

At a level σ in (0, 1) an image is x_σ = (1-σ) x_0 + σ ε, and a network says u = ε - x_0 of it (Lipman et al. 2023,
arXiv 2210.02747; Liu et al. 2023, arXiv 2209.03003). Divided by √((1-σ)² + σ²) this is x_t of
ᾱ = (1-σ)²/((1-σ)² + σ²), so that the samplers of every other recipe draw from such a network.
"""

from __future__ import annotations

import math

import torch

from fedsynth.config import Training
from fedsynth.diffusion import EncodedImages, TrainingState
from fedsynth.diffusion.denoiser import Denoiser
from fedsynth.diffusion.noise_levels import to_noise
from fedsynth.diffusion.sampling import PredictNoise

TIMESTEPS = 1000
"""A network is told 1000 σ, a number in the range of the timesteps it knows."""
LEVELS = ("uniform", "logit-normal")
"""How σ is drawn: evenly, or mostly in the middle (Esser et al. 2024, arXiv 2403.03206, Sec. 3.1)."""


def train_flow(
    state: TrainingState, images: EncodedImages, labels: torch.Tensor, config: Training, until_step: int, levels: str
) -> None:
    """Minimise the mean square error of u.

    Args:
        state: network and optimiser, advanced in place.
        images: training images, drawn with replacement.
        labels: their classes (n,).
        config: batch size and clipping.
        until_step: total number of steps after this call.
        levels: one of :data:`LEVELS`.
    """
    state.unet.train()
    while state.steps < until_step:
        rows = torch.randint(len(images), (config.batch_size,), generator=state.generator)
        clean = images.draw(rows, state.generator)
        noise = torch.randn(clean.shape, generator=state.generator)
        if levels == "uniform":
            sigma = torch.rand(len(clean), generator=state.generator)
        else:
            sigma = torch.randn(len(clean), generator=state.generator).sigmoid()
        share = sigma[:, None, None, None]
        said = state.unet((1 - share) * clean + share * noise, TIMESTEPS * sigma, class_labels=labels[rows]).sample
        loss = (said - (noise - clean)).square().mean()
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(state.unet.parameters(), config.max_grad_norm)
        state.set_learning_rate()
        state.optimizer.step()
        state.ema.step(state.unet.parameters())
        state.losses.append(float(loss.detach()))


def flow_noise_predictor(unet: Denoiser, alphas_cumprod: torch.Tensor, bound: float) -> PredictNoise:
    """Return ε(x_t, t, y) of a network that says u.

    Args:
        unet: the network.
        alphas_cumprod: ᾱ of every timestep t (T,).
        bound: largest absolute value of x_0.
    """
    unet.eval()

    @torch.inference_mode()
    def predict_noise(x: torch.Tensor, t: int, labels: torch.Tensor) -> torch.Tensor:
        alpha_bar = float(alphas_cumprod[t])
        signal, noise_std = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
        sigma = noise_std / (signal + noise_std)
        on_line = x / (signal + noise_std)
        clean = on_line - sigma * unet(on_line, TIMESTEPS * sigma, class_labels=labels).sample
        return to_noise(clean, x, alpha_bar, "sample", bound)

    return predict_noise
