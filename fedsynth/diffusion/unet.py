"""The denoising network: class-conditional ``diffusers.UNet2DModel`` presets."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from diffusers import UNet2DModel

from fedsynth.errors import UserError, unknown_choice
from fedsynth.seeding import initial_weights
from fedsynth.spec import ImageSpec


@dataclass(frozen=True)
class UNetPreset:
    """Shape of a U-Net.

    Attributes:
        block_out_channels: channels of each resolution level, finest first.
        layers_per_block: residual layers per level.
        attention_level: index of the level with self-attention, or None.
        middle_attention: whether the bottleneck attends.
    """

    block_out_channels: tuple[int, ...]
    layers_per_block: int
    attention_level: int | None
    middle_attention: bool


PRESETS = {
    "grid": UNetPreset((64, 64), 1, None, False),
    "digits": UNetPreset((32, 64), 1, None, False),
    "dp-small": UNetPreset((16,), 1, None, False),
    "small": UNetPreset((32, 64, 64), 1, 2, True),
    "mnist": UNetPreset((128, 128, 128, 128), 2, 2, True),
    "cifar10": UNetPreset((128, 256, 256, 256), 2, 2, True),
    "celeba": UNetPreset((128, 256, 256, 256), 2, 2, True),
}
"""``mnist``, ``cifar10`` and ``celeba`` have the parameter counts of Hahn & Lee (2025), the others suit a CPU."""


def paper_preset(dataset: str) -> str:
    """Name of the preset of a dataset in the papers; ``small`` where there is none."""
    return dataset if dataset in PRESETS else {"fashion-mnist": "mnist"}.get(dataset, "small")


def grid_preset(grid: ImageSpec) -> str:
    """Name of the preset for a network that sees ``grid``."""
    return "digits" if grid.channels <= 4 else "grid"


def build_unet(
    preset: str,
    spec: ImageSpec,
    generator: torch.Generator,
    block_out_channels: tuple[int, ...] | None = None,
    layers_per_block: int | None = None,
) -> UNet2DModel:
    """Build a freshly initialised U-Net with one embedding per class (no spare "null" class).

    Args:
        preset: key of :data:`PRESETS`.
        spec: what it sees, a grid of some channels, and the classes; see :class:`fedsynth.diffusion.codec.Codec`.
        generator: source of the initial weights.
        block_out_channels: replaces the preset's, multiples of 4.
        layers_per_block: replaces the preset's.

    Raises:
        UserError: unknown preset, or images too small to be halved once per level.
    """
    if preset not in PRESETS:
        raise unknown_choice("model", preset, PRESETS)
    shape = PRESETS[preset]
    channels = block_out_channels or shape.block_out_channels
    factor = 2 ** (len(channels) - 1)
    if spec.size % factor:
        raise UserError(
            f"image-size: the network sees {spec.size}x{spec.size} places, which must be a multiple of {factor} for a"
            f" U-Net of {len(channels)} levels; change image-size or codec, or give fewer block-out-channels"
        )
    attends = [level == shape.attention_level for level in range(len(channels))]
    with initial_weights(int(torch.randint(2**62, (1,), generator=generator, device=generator.device))):
        return UNet2DModel(
            sample_size=spec.size,
            in_channels=spec.channels,
            out_channels=spec.channels,
            layers_per_block=layers_per_block or shape.layers_per_block,
            block_out_channels=channels,
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
            # The norm after the embeddings are added takes a group's mean away: alone in its group, a channel loses
            # them.
            norm_num_groups=math.gcd(32, math.gcd(*channels) // 4),
            num_class_embeds=len(spec.classes),
            add_attention=shape.middle_attention,
            # Narrow test networks have fewer channels than a default attention head.
            attention_head_dim=min(8, *channels),
        )
