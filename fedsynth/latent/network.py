"""What the networks of all families of autoencoders have in common, and those of diffusers."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderTiny


class Network(nn.Module):
    """Encoder and decoder between images in [-1, 1] and latents."""

    @abstractmethod
    def to_latents(self, images: torch.Tensor) -> torch.Tensor:
        """Return latents (n, c, h/f, w/f) of images (n, C, h, w) in [-1, 1]; f is a power of two."""

    @abstractmethod
    def to_images(self, latents: torch.Tensor) -> torch.Tensor:
        """Return images (n, C, h, w); they are not clipped to [-1, 1]."""


class DiffusersNetwork(Network):
    """An autoencoder of diffusers, its latents shifted and scaled as in diffusers' pipelines.

    Args:
        model: with its settings; of an ``AutoencoderKL`` latents are the mean of the posterior.
    """

    def __init__(self, model: AutoencoderKL | AutoencoderTiny) -> None:
        super().__init__()
        self.model = model
        self._scale = float(model.config["scaling_factor"])
        self._shift = float(model.config.get("shift_factor") or 0.0)

    def to_latents(self, images: torch.Tensor) -> torch.Tensor:
        """Return (latents - shift)·scale."""
        encoded = self.model.encode(images)
        latents: torch.Tensor = encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded.latents
        return (latents - self._shift) * self._scale

    def to_images(self, latents: torch.Tensor) -> torch.Tensor:
        """Return what latents/scale + shift decode to."""
        images: torch.Tensor = self.model.decode(latents / self._scale + self._shift).sample
        return images
