"""Folders of tiny autoencoders, random but real, of every family that can be read."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from safetensors.torch import save_file

from fedsynth.latent.taesd import build_decoder, build_encoder


def kl_of(seed: int = 0, **settings: object) -> AutoencoderKL:
    """Factor 2, two latent channels."""
    torch.manual_seed(seed)
    shape = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    settings = {**shape, "block_out_channels": (4, 8), "norm_num_groups": 2, "latent_channels": 2, **settings}
    return AutoencoderKL(**settings).eval()


def tiny_of(seed: int = 0, **settings: object) -> AutoencoderTiny:
    """Factor 4, two latent channels."""
    torch.manual_seed(seed)
    blocks = {"num_encoder_blocks": (1, 1, 1), "num_decoder_blocks": (1, 1, 1)}
    widths = {"encoder_block_out_channels": (4, 4, 4), "decoder_block_out_channels": (4, 4, 4)}
    return AutoencoderTiny(**{**blocks, **widths, "latent_channels": 2, **settings}).eval()


def write_taesd(folder: Path, seed: int = 0, pooled: bool = True, image_channels: int = 3) -> Path:
    """Factor 8, three latent channels, four channels wide; pooled blocks where TAEF2 has them."""
    torch.manual_seed(seed)
    encoder = build_encoder(4, image_channels, 3, {11, 12, 13} if pooled else ())
    decoder = build_decoder(4, image_channels, 3, {3, 4, 5} if pooled else ())
    folder.mkdir(exist_ok=True)
    save_file(encoder.state_dict(), folder / "encoder.safetensors")
    save_file(decoder.state_dict(), folder / "decoder.safetensors")
    return folder
