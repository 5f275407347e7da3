"""Folders of public models that a run can start from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedsynth.config import RunConfig
from fedsynth.diffusion import ClassConditionalDDPMPipeline, codec_of, initial_unet, lasting_scheduler
from fedsynth.spec import ImageSpec


def write_public_model(folder: Path, classes: tuple[str, ...], seed: int = 9, **changes: Any) -> Path:
    """Save a tiny network of images of 8x8 pixels that nobody trained, with its classes; changes in snake case."""
    given = {"block-out-channels": "8,8", **{key.replace("_", "-"): value for key, value in changes.items()}}
    config, spec = RunConfig.from_run_config({**given, "seed": seed}), ImageSpec(1, 8, classes)
    codec = codec_of(config, spec)
    scheduler = lasting_scheduler(config.recipe, bound=codec.bound)
    ClassConditionalDDPMPipeline(initial_unet(config, spec), scheduler, classes, **codec.saved).save_pretrained(folder)
    return folder
