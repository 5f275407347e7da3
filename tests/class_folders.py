"""Small labelled image folders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def write_images(folder: Path, per_class: Mapping[str, int], side: int = 8, colour: bool = False) -> Path:
    """Write noise around a shade of each class, other noise for folder names of other lengths; return ``folder``."""
    rng = np.random.default_rng(len(folder.name))
    for shade, (name, count) in enumerate(per_class.items()):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.normal(60 + 120 * shade, 25, (side, side, 3 if colour else 1)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels if colour else pixels[..., 0]).save(folder / name / f"{number}.png")
    return folder
