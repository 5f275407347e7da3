"""Training of a noise-prediction network that can stop anywhere and go on as if it had not."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from diffusers.training_utils import EMAModel

from fedsynth.config import Diffusion, Training
from fedsynth.diffusion.sampling import make_scheduler
from fedsynth.errors import RunError
from fedsynth.files import atomic_file

CURVE_POINTS = 50


class TrainingState:
    """A network with all that its training needs to continue bit for bit: optimiser, weight average, random state.

    Args:
        unet: the network, trained in place.
        config: optimiser and weight-average settings.
        generator: source of batches, noise levels and noise.

    Attributes:
        losses: mean squared error of every step so far.
        seconds: time spent so far, kept by the caller.
    """

    def __init__(self, unet: UNet2DModel, config: Training, generator: torch.Generator) -> None:
        self.unet, self.generator = unet, generator
        self.optimizer = torch.optim.Adam(unet.parameters(), lr=config.learning_rate)
        self.ema = EMAModel(unet.parameters(), decay=config.ema_decay, use_ema_warmup=True, power=0.75, foreach=True)
        self.losses: list[float] = []
        self.seconds = 0.0

    @property
    def steps(self) -> int:
        """Optimiser steps done."""
        return len(self.losses)

    def averaged_unet(self) -> UNet2DModel:
        """Put the averaged weights into the network and return it; training cannot go on afterwards."""
        self.ema.copy_to(self.unet.parameters())
        return self.unet

    def save(self, path: Path) -> None:
        """Write everything to one file, atomically."""
        state = {
            "unet": self.unet.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "seconds": self.seconds,
        }
        with atomic_file(path) as temporary:
            torch.save(state, temporary)

    def load(self, path: Path) -> None:
        """Continue from a file written by :meth:`save`."""
        device = next(self.unet.parameters()).device
        # Every part moves its own tensors, and Adam's step counts belong on the CPU.
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.unet.load_state_dict(state["unet"])
        self.ema.load_state_dict(state["ema"])
        self.ema.to(device)
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.losses, self.seconds = state["losses"].tolist(), state["seconds"]


def train(
    state: TrainingState,
    images: torch.Tensor,
    labels: torch.Tensor,
    config: Training,
    diffusion: Diffusion,
    until_step: int,
    deadline: float | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Minimise ‖ε - ε_θ(x_t, t, y)‖² over uniform t (Ho et al. 2020, Eq. 14) up to step ``until_step``.

    The result does not depend on how a training is cut into calls.

    Args:
        state: network and optimiser, advanced in place.
        images: training images (n, C, H, W) in [-1, 1], drawn with replacement.
        labels: their classes (n,).
        config: batch size, clipping, precision.
        diffusion: noise schedule.
        until_step: total number of steps after this call.
        deadline: ``time.monotonic()`` after which no further step starts; at least one step is made.
        on_step: called with (steps done, loss) after each step.

    Returns:
        Losses of the steps made by this call.
    """
    scheduler = make_scheduler(diffusion)
    state.unet.train()
    first = state.steps
    while state.steps < until_step:
        batch = _draw_batch(images, labels, config.batch_size, diffusion.num_train_timesteps, state.generator)
        state.losses.append(_step(state, scheduler, batch, config))
        if on_step is not None:
            on_step(state.steps, state.losses[-1])
        if deadline is not None and time.monotonic() >= deadline:
            break
    return state.losses[first:]


def loss_curve(losses: list[float]) -> dict[str, list[float]]:
    """Thin out a loss curve to at most 50 means: ``steps`` (last step of each stretch) and ``losses``."""
    width = max(1, -(-len(losses) // CURVE_POINTS))
    chunks = [losses[first : first + width] for first in range(0, len(losses), width)]
    ends = [float(min(first + width, len(losses))) for first in range(0, len(losses), width)]
    return {"steps": ends, "losses": [sum(chunk) / len(chunk) for chunk in chunks]}


def _draw_batch(
    images: torch.Tensor, labels: torch.Tensor, size: int, num_levels: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    rows = torch.randint(len(images), (size,), generator=generator)
    t = torch.randint(num_levels, (size,), generator=generator)
    noise = torch.randn((size, *images.shape[1:]), generator=generator)
    return images[rows], labels[rows], t, noise


def _step(state: TrainingState, scheduler: Any, batch: tuple[torch.Tensor, ...], config: Training) -> float:
    device = next(state.unet.parameters()).device
    clean, labels, t, noise = (part.to(device) for part in batch)
    noisy = scheduler.add_noise(clean, noise, t)
    bf16 = config.mixed_precision == "bf16" and device.type == "cuda"
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
        predicted = state.unet(noisy, t, class_labels=labels).sample
    loss = F.mse_loss(predicted.float(), noise)
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(state.unet.parameters(), config.max_grad_norm)
    state.optimizer.step()
    state.ema.step(state.unet.parameters())
    value = float(loss.detach())
    if not math.isfinite(value):
        raise RunError(f"training loss is {value} at step {state.steps + 1}: lower learning-rate or max-grad-norm")
    return value
