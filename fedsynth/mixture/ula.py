"""Unadjusted Langevin moves on the composed score, as a diffusers scheduler."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor

from fedsynth.errors import UserError


@dataclass
class ULASchedulerOutput(BaseOutput):
    """Result of one step.

    Attributes:
        prev_sample: the moved samples (N, C, H, W).
    """

    prev_sample: torch.Tensor


class ULAScheduler(SchedulerMixin, ConfigMixin):
    """One Langevin move per noise level: x ← x + η_t s* + √(2η_t) z (Hahn & Lee, NeurIPS 2025, Eq. 8).

    The score is s* = -λ ε* / √(1-ᾱ_t) (Eq. 11) and the step size η_t = c (1-ᾱ_t). The paper leaves the step
    size open: this form and c = 0.2 are our choice. For a Gaussian of variance 1-ᾱ one such move at a fixed level has
    the stationary variance 2/(2-a) of the true one, a = λη/(1-ᾱ), so a must stay below 2.

    Args:
        num_train_timesteps: number of noise levels T, at least 1.
        beta_start: first β of the linear schedule, in (0, 1).
        beta_end: last β, in (0, 1).
        beta_schedule: ``linear``, or ``squaredcos_cap_v2``, the cosine schedule.
        step_scale: c > 0.
        score_scale: λ > 0, a temperature: 2 sharpens by √2 (the paper's Lemma 4.4), 1 targets the mixture itself.

    Raises:
        UserError: c or λ out of range, some η_t above ½, or λc not below 2.
    """

    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        step_scale: float = 0.2,
        score_scale: float = 1.0,
    ) -> None:
        for key, value in (("step-scale", step_scale), ("score-scale", score_scale)):
            if not value > 0:
                raise UserError(f"{key} = {value}: must be > 0")
        schedule = DDPMScheduler(num_train_timesteps, beta_start, beta_end, beta_schedule)
        self.alphas_cumprod: torch.Tensor = schedule.alphas_cumprod
        self.step_sizes = step_scale * (1.0 - self.alphas_cumprod)
        if self.step_sizes.max() > 0.5:
            raise UserError(f"step-scale = {step_scale}: the largest step size is {self.step_sizes.max():.3f} > 0.5")
        if not score_scale * step_scale < 2:
            raise UserError(f"score-scale = {score_scale}: must be < {2 / step_scale:g}, 2 / step-scale")
        self.init_noise_sigma = 1.0
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1)

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Visit ``num_inference_steps`` of the T levels, evenly spaced, from the noisiest to the cleanest.

        Raises:
            UserError: ``num_inference_steps`` not in 1 … T.
        """
        total = self.config.num_train_timesteps
        if not 1 <= num_inference_steps <= total:
            raise UserError(f"{num_inference_steps} noise levels asked for: must be in 1 … {total}")
        grid = torch.linspace(total - 1, 0, num_inference_steps, dtype=torch.float64)
        self.timesteps = grid.round().long().to(device)

    def scale_model_input(self, sample: torch.Tensor, timestep: int | torch.Tensor | None = None) -> torch.Tensor:
        """Return ``sample`` unchanged; present for interchangeability with other schedulers."""
        return sample

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> ULASchedulerOutput | tuple[torch.Tensor]:
        """Make one Langevin move at noise level ``timestep``.

        Args:
            model_output: composed noise prediction ε* (N, C, H, W).
            timestep: noise level t in 0 … T-1.
            sample: current samples (N, C, H, W).
            generator: source of the injected noise z.
            return_dict: return a tuple when false.
        """
        t = int(timestep)
        step_size = self.step_sizes[t]
        noise_std = (1.0 - self.alphas_cumprod[t]).sqrt()
        score = -self.config.score_scale * model_output / noise_std  # Eq. (11)
        noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
        moved = sample + step_size * score + (2 * step_size).sqrt() * noise  # Eq. (8)
        return ULASchedulerOutput(prev_sample=moved) if return_dict else (moved,)

    def add_noise(self, original: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Forward process q(x_t | x_0) at ``timesteps`` (N,), as in every diffusers scheduler."""
        alpha_bar = self.alphas_cumprod.to(original)[timesteps][:, None, None, None]
        return alpha_bar.sqrt() * original + (1 - alpha_bar).sqrt() * noise

    def __len__(self) -> int:
        """Number of noise levels T."""
        return int(self.config.num_train_timesteps)
