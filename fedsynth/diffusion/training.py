"""Training of a denoising network that can stop anywhere and go on as if it had not."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel

from fedsynth.config import Recipe, Training
from fedsynth.diffusion.codec import Images
from fedsynth.diffusion.denoiser import Denoiser, num_classes
from fedsynth.diffusion.recipe import denoising_loss, learning_rate, make_optimizer
from fedsynth.diffusion.samplers import make_scheduler
from fedsynth.errors import RunError
from fedsynth.sealed import Seal, SealError
from fedsynth.sealed_tensors import load_torch, save_torch

logger = logging.getLogger("fedsynth")

CURVE_POINTS = 50


class TrainingState:
    """A network with all that its training needs to continue bit for bit: optimiser, weight average, random state.

    Args:
        unet: the network, trained in place.
        recipe: how it is trained.
        generator: source of batches, noise levels and noise.
        total_steps: steps over which the learning rate falls.
        first_step: steps done before with other optimisers, which count towards the learning rate.

    Attributes:
        losses: training loss of every step so far; NaN of a step that measured none.
        held_out_losses: loss of the weight average at every check so far, if there are checks.
        best_weights: the weight average at the lowest of them; empty before the first check.
        seconds: time spent so far, kept by the caller.
    """

    def __init__(
        self, unet: Denoiser, recipe: Recipe, generator: torch.Generator, total_steps: int, first_step: int = 0
    ) -> None:
        self.unet = unet
        self.recipe = recipe
        self.generator = generator
        self.total_steps = total_steps
        self.first_step = first_step
        self.optimizer = make_optimizer(unet.parameters(), recipe)
        self.ema = EMAModel(unet.parameters(), decay=recipe.ema_decay, use_ema_warmup=True, power=0.75, foreach=True)
        self.losses: list[float] = []
        self.held_out_losses: list[float] = []
        self.best_weights: list[torch.Tensor] = []
        self.seconds = 0.0

    @property
    def steps(self) -> int:
        """Optimiser steps done."""
        return len(self.losses)

    @property
    def on_schedule(self) -> bool:
        """Whether the last step had the learning rate of a training of ``total_steps``."""
        return not self.losses or self.optimizer.param_groups[0]["lr"] == self._rate_after(self.steps - 1)

    def set_learning_rate(self) -> None:
        """Give the optimiser the rate of the next step."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate_after(self.steps)

    def _rate_after(self, steps: int) -> float:
        return learning_rate(self.recipe, self.first_step + steps, self.total_steps)

    def note_held_out_loss(self, loss_of: Callable[[Denoiser], float]) -> None:
        """Check the averaged weights, and keep them if none were better; training can go on as if it had not been."""
        self.ema.store(self.unet.parameters())
        self.ema.copy_to(self.unet.parameters())
        loss = loss_of(self.unet)
        self.ema.restore(self.unet.parameters())
        if loss < min(self.held_out_losses, default=math.inf):
            self.best_weights = [weights.detach().clone() for weights in self.ema.shadow_params]
        self.held_out_losses.append(loss)

    def averaged_unet(self) -> Denoiser:
        """Put the averaged weights, after checks the best of them, into the network; training cannot go on with it."""
        self.ema.copy_to(self.unet.parameters())
        with torch.no_grad():
            for parameter, best in zip(self.unet.parameters(), self.best_weights, strict=False):
                parameter.copy_(best)
        return self.unet

    def state_dict(self) -> dict[str, Any]:
        """Return everything; the tensors are those in use."""
        return {
            "unet": self.unet.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "held-out-losses": torch.tensor(self.held_out_losses, dtype=torch.float64),
            "best-weights": self.best_weights,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned, its tensors on the CPU."""
        self.unet.load_state_dict(state["unet"])
        self.ema.load_state_dict(state["ema"])
        self.ema.to(next(self.unet.parameters()).device)
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.losses = state["losses"].tolist()
        self.seconds = state["seconds"]
        # A checkpoint from before there were checks lacks these.
        self.held_out_losses = state.get("held-out-losses", torch.empty(0)).tolist()
        self.best_weights = state.get("best-weights", [])

    def save(self, path: Path, owner: str = "") -> None:
        """Write everything to one file, atomically; ``owner`` names the training, so that no other goes on from it."""
        save_torch(path, self.state_dict(), _seal(owner))

    def load(self, path: Path, owner: str = "") -> None:
        """Continue from a file written by :meth:`save`.

        Raises:
            SealError: it is damaged, or another training's.
        """
        # On the CPU: every part moves its own tensors to where it needs them.
        self.load_state_dict(load_torch(path, _seal(owner)))

    def resume(self, path: Path, name: str, owner: str = "") -> bool:
        """Do the same if there is a file; a damaged one is logged under ``name``, and training starts at step 0.

        Returns:
            Whether training goes on from a file.
        """
        # The same training from the start ends in the same model.
        if path.exists():
            try:
                self.load(path, owner)
            except SealError as error:
                logger.warning("%s: checkpoint '%s' is damaged, training starts again (%s)", name, path, error)
            else:
                return True
        return False


def _seal(owner: str) -> Seal:
    return Seal("training state", 1, owner)


def train(
    state: TrainingState,
    images: Images,
    labels: torch.Tensor,
    config: Training,
    until_step: int,
    deadline: float | None = None,
    on_step: Callable[[int, float], None] | None = None,
    proximal_mu: float = 0.0,
) -> list[float]:
    """Minimise :func:`~fedsynth.diffusion.recipe.denoising_loss` over uniform t (Ho et al. 2020, Alg. 1).

    The result does not depend on how a training is cut into calls, unless there is a proximal term.

    Args:
        state: network and optimiser, advanced in place.
        images: training images, drawn with replacement: uniformly, or under ``config.oversample`` so that every class
            among ``labels`` is equally likely.
        labels: their classes (n,).
        config: batch size, oversampling, clipping, precision; and how often a base model is asked by an empty prompt.
        until_step: total number of steps after this call.
        deadline: ``time.monotonic()`` after which no further step starts; at least one step is made.
        on_step: called with (steps done, loss) after each step.
        proximal_mu: μ >= 0 of FedProx's term (μ/2)·‖w - w_t‖², w_t the weights at the start of this call (Li et al.
            2020, arXiv 1812.06127, Eq. 2).

    Returns:
        Losses of the steps made by this call, without the proximal term.
    """
    scheduler = make_scheduler(state.recipe)
    # 1/count of its class for every image.
    weights = 1 / torch.bincount(labels)[labels].double() if config.oversample else None
    proximal = _ProximalTerm.around(state.unet, proximal_mu) if proximal_mu else None
    state.unet.train()
    first = state.steps
    while state.steps < until_step:
        if weights is None:
            rows = torch.randint(len(images), (config.batch_size,), generator=state.generator)
        else:
            rows = torch.multinomial(weights, config.batch_size, replacement=True, generator=state.generator)
        clean = images[rows] if isinstance(images, torch.Tensor) else images.draw(rows, state.generator)
        t = torch.randint(state.recipe.num_train_timesteps, (len(clean),), generator=state.generator)
        noise = torch.randn(clean.shape, generator=state.generator)
        classes = labels[rows]
        if config.label_dropout:
            dropped = torch.rand(len(clean), generator=state.generator) < config.label_dropout
            classes = classes.masked_fill(dropped, num_classes(state.unet))
        state.losses.append(_step(state, scheduler, (clean, classes, t, noise), config, proximal))
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


@dataclass(frozen=True)
class _ProximalTerm:
    """(μ/2)·‖w - w_t‖² over all parameters together."""

    mu: float
    start: list[torch.Tensor]

    @classmethod
    def around(cls, unet: Denoiser, mu: float) -> _ProximalTerm:
        return cls(mu, [parameter.detach().clone() for parameter in unet.parameters()])

    def add_gradient(self, unet: Denoiser) -> None:
        """Add μ (w - w_t) to the gradients; parameters without one have not moved."""
        for parameter, start in zip(unet.parameters(), self.start, strict=True):
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - start, alpha=self.mu)


def _step(
    state: TrainingState,
    scheduler: Any,
    batch: tuple[torch.Tensor, ...],
    config: Training,
    proximal: _ProximalTerm | None,
) -> float:
    device = next(state.unet.parameters()).device
    clean, labels, t, noise = (part.to(device) for part in batch)
    noisy = scheduler.add_noise(clean, noise, t)
    bf16 = config.mixed_precision == "bf16" and device.type == "cuda"
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
        predicted = state.unet(noisy, t, class_labels=labels).sample
    alpha_bar = scheduler.alphas_cumprod.to(device)[t]
    loss = denoising_loss(predicted.float(), clean, noise, alpha_bar, state.recipe).mean()
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if proximal is not None:
        proximal.add_gradient(state.unet)
    torch.nn.utils.clip_grad_norm_(state.unet.parameters(), config.max_grad_norm)
    state.set_learning_rate()
    state.optimizer.step()
    state.ema.step(state.unet.parameters())
    value = float(loss.detach())
    if not math.isfinite(value):
        raise RunError(f"training loss is {value} at step {state.steps + 1}: lower learning-rate or max-grad-norm")
    return value
