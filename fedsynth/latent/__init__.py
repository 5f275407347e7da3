"""Latents: what a diffusion model sees in place of pixels when a pretrained autoencoder stands before it."""

from fedsynth.latent.autoencoder import Autoencoder
from fedsynth.latent.reading import read_autoencoder
from fedsynth.latent.statistics import LatentStatistics, base_statistics, public_statistics

__all__ = ["Autoencoder", "LatentStatistics", "base_statistics", "public_statistics", "read_autoencoder"]
