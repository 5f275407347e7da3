"""Mean and standard deviation of latents, taken from public photographs: no silo's images decide them.

A diffusion model wants inputs of about zero mean and unit variance in every channel (Rombach et al. 2022, arXiv
2112.10752, appendix G, scale by one number, found on training images). Statistics of training images would tell of
them, and could differ between silos.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch

from fedsynth.errors import UserError
from fedsynth.latent.autoencoder import Autoencoder

PIXELS = 2**16
"""So many pixels of crops are encoded: 16 crops of 64×64, 64 of 32×32."""
MOST_CROPS = 64
LARGEST_CROP = 256
DIGITS = 3
MARGIN = 1.5
"""White blood cells at 64×64 reach 1.1 times the largest value of the photographs in TAEF2's latents."""


@dataclass(frozen=True)
class LatentStatistics:
    """How the latents of photographs are distributed.

    Attributes:
        mean: of every channel.
        std: standard deviation of every channel, > 0.
        bound: 1.5 times the largest absolute value of their standardised latents.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    bound: float

    def standardise(self, latents: torch.Tensor) -> torch.Tensor:
        """Return (latents - mean)/std for latents (n, c, h, w), float32."""
        mean, std = self._columns()
        return (latents.float() - mean) / std

    def restore(self, standardised: torch.Tensor) -> torch.Tensor:
        """Return the latents that were standardised, float32."""
        mean, std = self._columns()
        return standardised.float() * std + mean

    @property
    def digest(self) -> str:
        """SHA-256 of the numbers."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()

    def _columns(self) -> tuple[torch.Tensor, torch.Tensor]:
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return mean, std


def public_statistics(autoencoder: Autoencoder, size: int, channels: int) -> LatentStatistics:
    """Measure the latents of crops of scikit-learn's two sample photographs.

    Computed in double precision and rounded to three significant digits of the standard deviation, so that machines
    agree.

    Args:
        autoencoder: on any device.
        size: side of the run's images, which is that of the crops up to 256.
        channels: of the run's images; crops of a grey run are grey.

    Raises:
        UserError: a channel of the latents does not vary.
    """
    latents = _public_latents(autoencoder, size, channels)
    by_channel = latents.transpose(0, 1).flatten(1)
    means, stds = by_channel.mean(1).tolist(), by_channel.std(1, correction=0).tolist()
    if (flat := [k for k, std in enumerate(stds) if not math.isfinite(std) or std < 1e-6]) or not stds:
        raise UserError(
            f"autoencoder: channel {flat[0]} of its latents says nothing of an image: give another autoencoder"
        )
    places = [DIGITS - 1 - math.floor(math.log10(std)) for std in stds]
    mean = tuple(round(value, place) for value, place in zip(means, places, strict=True))
    std = tuple(round(value, place) for value, place in zip(stds, places, strict=True))
    return LatentStatistics(mean, std, _bound(LatentStatistics(mean, std, 0.0).standardise(latents)))


def base_statistics(autoencoder: Autoencoder, size: int, channels: int) -> LatentStatistics:
    """Return statistics that leave latents as they are, as a base model's U-Net knows them, with their bound.

    Args:
        autoencoder, size, channels: as of :func:`public_statistics`.
    """
    mean, std = (0.0,) * autoencoder.latent_channels, (1.0,) * autoencoder.latent_channels
    return LatentStatistics(mean, std, _bound(_public_latents(autoencoder, size, channels)))


def _public_latents(autoencoder: Autoencoder, size: int, channels: int) -> torch.Tensor:
    exact = replace(autoencoder, network=copy.deepcopy(autoencoder.network).to("cpu", torch.float64))
    return exact.encode(public_crops(min(size, LARGEST_CROP), channels))


def _bound(latents: torch.Tensor) -> float:
    return float(f"{MARGIN * float(latents.abs().max()):.{DIGITS - 1}g}")


def public_crops(size: int, channels: int) -> torch.Tensor:
    """Return crops of the two photographs on a regular grid, float64 (n, channels, size, size) in [-1, 1].

    Of side ``size``; n is even and at most 64, with fewer of large crops.
    """
    from sklearn.datasets import load_sample_images  # a second of imports that other codecs do without

    each = max(1, min(MOST_CROPS, PIXELS // size**2) // 2)
    down = math.isqrt(each)
    across = each // down
    crops = []
    for photograph in load_sample_images().images:
        height, width = photograph.shape[:2]
        rows = np.linspace(0, height - size, down + 2)[1:-1].astype(int)
        columns = np.linspace(0, width - size, across + 2)[1:-1].astype(int)
        crops += [photograph[top : top + size, left : left + size] for top in rows for left in columns]
    images = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).double() / 127.5 - 1
    return images if channels > 1 else images.mean(1, keepdim=True)
