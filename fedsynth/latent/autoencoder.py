"""An autoencoder as the rest of the product sees it: images in, latents out, and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from fedsynth.errors import UserError
from fedsynth.latent.network import Network

PIXELS_AT_ONCE = 2**15
"""So many pixels are decoded at a time: 8 images of 64×64."""


@dataclass(frozen=True)
class Autoencoder:
    """A network with its measures; its weights are never trained.

    Attributes:
        network: on its device.
        image_channels: 1 or 3, of its images.
        latent_channels: of its latents.
        factor: side of an image per side of its latents.
        digest: SHA-256 of all that decides what it computes: kind, settings and weights.
    """

    network: Network = field(compare=False)
    image_channels: int
    latent_channels: int
    factor: int
    digest: str

    def check(self, size: int, channels: int) -> None:
        """Refuse images that it cannot encode.

        Args:
            size: side of the images in pixels.
            channels: 1 or 3; grey images are repeated to three channels where it takes three.

        Raises:
            UserError: names the key and what to change.
        """
        if size % self.factor:
            near = max(1, round(size / self.factor)) * self.factor
            raise UserError(
                f"image-size = {size}: must be a multiple of {self.factor} for this autoencoder: set image-size ="
                f" {near}, or another codec"
            )
        if channels > self.image_channels:
            raise UserError("autoencoder: it takes grey images, and the run's are in colour: give one of colour images")

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Return latents (n, latent_channels, h/factor, w/factor), on the CPU, in the precision of the network.

        One image at a time, which takes no longer from 64×64 on: its latents have the same bits whatever comes with it.

        Args:
            images: (n, C, h, w) in [-1, 1], C = 1 or 3; grey ones are repeated where the network takes three channels.
        """
        images = images.expand(-1, max(self.image_channels, images.shape[1]), -1, -1)
        return self._in_batches(self.network.to_latents, images, 1)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor, channels: int) -> torch.Tensor:
        """Return images (n, channels, h, w), on the CPU, not clipped to [-1, 1].

        Args:
            latents: (n, latent_channels, h/factor, w/factor).
            channels: 1 or 3; where the network makes three and one is wanted, it is their mean.
        """
        pixels = latents[0, 0].numel() * self.factor**2
        images = self._in_batches(self.network.to_images, latents, max(1, PIXELS_AT_ONCE // pixels))
        return images.mean(1, keepdim=True) if channels < self.image_channels else images

    def _in_batches(
        self, compute: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor, size: int
    ) -> torch.Tensor:
        weights = next(self.network.parameters())
        return torch.cat([compute(batch.to(weights.device, weights.dtype)).cpu() for batch in inputs.split(size)])
