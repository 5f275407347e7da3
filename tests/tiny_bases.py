"""Folders of tiny base models, random but real; with embeddings of prompts in place of a text encoder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, DiTTransformer2DModel, UNet2DConditionModel
from tiny_autoencoders import kl_of

from fedsynth.config import RunConfig
from fedsynth.latent.conditions import TABLE, write_conditions

TOKENS, WIDTH = 3, 8
CLASSES = tuple("0123456789")
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "epsilon"}


def config_of(folder: Path | str, **changes: Any) -> RunConfig:
    """A run with a base model, in which silos keep what they train; changes in snake case."""
    given = {name.replace("_", "-"): value for name, value in changes.items()}
    return RunConfig.from_run_config({"base-model": str(folder), "strategy": "pooled", **given})


def unet_of(seed: int = 0, **settings: object) -> UNet2DConditionModel:
    """Two latent channels, halved once."""
    torch.manual_seed(seed)
    shape: dict[str, object] = {
        "in_channels": 2,
        "out_channels": 2,
        "sample_size": 4,
        "block_out_channels": (8, 8),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 4,
        "norm_num_groups": 2,
    }
    return UNet2DConditionModel(**{**shape, **settings}).eval()


def embeddings_of(classes: Sequence[str], seed: int = 0) -> dict[str, torch.Tensor]:
    """By prompt, (3, 8) each."""
    generator = torch.Generator().manual_seed(seed)
    return {f"a photo of {name}": torch.randn(TOKENS, WIDTH, generator=generator) for name in classes}


def write_base(folder: Path, seed: int = 0, classes: Sequence[str] = CLASSES, **schedule: object) -> Path:
    """Images of 8×8 and above, factor 2."""
    unet_of(seed).save_pretrained(folder / "unet")
    kl_of(0).save_pretrained(folder / "vae")
    DDPMScheduler(**{**SCHEDULE, **schedule}).save_pretrained(folder / "scheduler")
    write_conditions(folder / TABLE, embeddings_of(classes))
    return folder


LABELS = {0: "tench, Tinca tinca", 1: "Seven, 7", 2: "goldfish"}


def transformer_of(seed: int = 0, **settings: object) -> DiTTransformer2DModel:
    """Two latent channels in patches of 2×2, three classes; it predicts a variance, too."""
    torch.manual_seed(seed)
    shape: dict[str, object] = {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "in_channels": 2,
        "out_channels": 4,
        "num_layers": 2,
        "sample_size": 8,
        "num_embeds_ada_norm": len(LABELS),
        "norm_num_groups": 2,
    }
    return DiTTransformer2DModel(**{**shape, **settings}).eval()


def write_labelled_base(
    folder: Path, seed: int = 0, labels: Mapping[int, str] | None = None, **schedule: object
) -> Path:
    """The same with classes in place of prompts, as ``DiTPipeline`` writes it."""
    transformer_of(seed).save_pretrained(folder / "transformer")
    kl_of(0).save_pretrained(folder / "vae")
    DDPMScheduler(**schedule).save_pretrained(folder / "scheduler")
    index = {"_class_name": "DiTPipeline", "id2label": LABELS if labels is None else labels}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
