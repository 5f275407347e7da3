"""The tiny autoencoders of the TAESD family (github.com/madebyollin/taesd): plain sequences of 3×3 convolutions.

diffusers' ``AutoencoderTiny`` holds those without pooled blocks; ones for newer latent spaces, such as TAEF2, have
pooled blocks at the coarsest resolution. The names in their files are places in the two sequences built here.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from fedsynth.latent.network import Network

STAGES = 3
BLOCKS = 3
"""Blocks per stage; the encoder begins and the decoder ends with a single one."""
POOL_GROUPS = 4
LARGEST_LATENT = 3.0


class Block(nn.Module):
    """Three convolutions around an identity; a pooled one first adds what 1×1 convolutions make of the whole image.

    Args:
        width: channels n in and out.
        pooled: whether x ← x + conv(relu(norm(conv(x)))) comes first, n → 4n → n channels.
    """

    def __init__(self, width: int, pooled: bool) -> None:
        super().__init__()
        self.conv = nn.Sequential(_conv(width, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width))
        self.pool: nn.Module = nn.Sequential()
        if pooled:
            self.pool = nn.Sequential(
                nn.Conv2d(width, 4 * width, 1, bias=False),
                nn.GroupNorm(POOL_GROUPS, 4 * width),
                nn.ReLU(),
                nn.Conv2d(4 * width, width, 1, bias=False),
            )
        self._pooled = pooled

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return features of the same shape (n, width, h, w)."""
        if self._pooled:
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + x)


class Clamp(nn.Module):
    """3·tanh(x/3): latents beyond 3 do not reach the decoder."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return values in (-3, 3)."""
        return torch.tanh(x / LARGEST_LATENT) * LARGEST_LATENT


def build_encoder(width: int, image_channels: int, latent_channels: int, pooled: Collection[int]) -> nn.Sequential:
    """Build the encoder: images (n, image_channels, h, w) in [0, 1] -> latents (n, latent_channels, h/8, w/8).

    Args:
        width: channels of every hidden layer.
        image_channels: of the images.
        latent_channels: of the latents.
        pooled: places of the pooled blocks in the sequence.
    """
    layers: list[nn.Module] = [_conv(image_channels, width)]
    _add_blocks(layers, 1, width, pooled)
    for _ in range(STAGES):
        layers.append(_conv(width, width, stride=2, bias=False))
        _add_blocks(layers, BLOCKS, width, pooled)
    return nn.Sequential(*layers, _conv(width, latent_channels))


def build_decoder(width: int, image_channels: int, latent_channels: int, pooled: Collection[int]) -> nn.Sequential:
    """Build the decoder, the other way round; its arguments are those of :func:`build_encoder`."""
    layers: list[nn.Module] = [Clamp(), _conv(latent_channels, width), nn.ReLU()]
    for stage in range(STAGES):
        _add_blocks(layers, BLOCKS, width, pooled)
        layers += [nn.Upsample(scale_factor=2), _conv(width, width, bias=False)]
        if stage == STAGES - 1:
            _add_blocks(layers, 1, width, pooled)
    return nn.Sequential(*layers, _conv(width, image_channels))


class TAESDNetwork(Network):
    """Encoder and decoder of the family, which work with images in [0, 1].

    Args:
        encoder: as :func:`build_encoder` returns it.
        decoder: as :func:`build_decoder` returns it.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def to_latents(self, images: torch.Tensor) -> torch.Tensor:
        """Return latents (n, c, h/8, w/8) of images (n, C, h, w) in [-1, 1]."""
        latents: torch.Tensor = self.encoder((images + 1) / 2)
        return latents

    def to_images(self, latents: torch.Tensor) -> torch.Tensor:
        """Return images (n, C, h, w), not clipped."""
        images: torch.Tensor = self.decoder(latents)
        return images * 2 - 1


def _conv(before: int, after: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=bias)


def _add_blocks(layers: list[nn.Module], count: int, width: int, pooled: Collection[int]) -> None:
    for _ in range(count):
        layers.append(Block(width, len(layers) in pooled))
