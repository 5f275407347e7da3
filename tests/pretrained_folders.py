"""Folders of models that a silo could bring along."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel


def unet_of(
    seed: int = 0, classes: int | None = 3, channels: int = 1, attention: bool = False, **shape: Any
) -> UNet2DModel:
    """A random network of any shape."""
    torch.manual_seed(seed)
    widths = shape.pop("block_out_channels", (8, 8))
    kind = "Attn" if attention else ""
    settings: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": channels,
        "out_channels": channels,
        "layers_per_block": 1,
        "block_out_channels": widths,
        "down_block_types": (f"{kind}DownBlock2D",) * len(widths),
        "up_block_types": (f"{kind}UpBlock2D",) * len(widths),
        "norm_num_groups": 2,
        "attention_head_dim": 4,
        "num_class_embeds": classes,
    }
    return UNet2DModel(**{**settings, **shape})


def save_model(
    folder: Path, unet: UNet2DModel, classes: tuple[str, ...], scheduler: Any = None, **schedule: Any
) -> Path:
    """A pipeline folder, with ``classes.json`` for a class-conditional network."""
    DDPMPipeline(unet, scheduler or DDPMScheduler(**schedule)).save_pretrained(folder)
    if unet.config.num_class_embeds is not None:
        (folder / "classes.json").write_text(json.dumps(classes))
    return folder
