"""Augmentation: variants of training images that could as well have been taken, drawn anew for every batch.

Which variants are possible pictures is a question of the data: a cell may lie any way round, a digit must not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

FLIP, ROTATE90, SHIFT = "flip", "rotate90", "shift"

SHIFT_SHARE = 16
"""A shift moves an image by up to 1/16 of its side, one pixel at least; edge pixels are repeated."""


def augmented(images: torch.Tensor, names: Sequence[str], generator: torch.Generator) -> torch.Tensor:
    """Return images (n, C, H, H) of which each is varied by itself.

    Args:
        images: any values.
        names: ``flip`` mirrors left and right with probability ½, ``rotate90`` turns by 0, 90, 180 or 270 degrees,
            ``shift`` moves along both axes.
        generator: source of the choices.
    """
    for name in names:
        images = _VARIANTS[name](images, generator)
    return images


def exact_variants(names: Sequence[str]) -> tuple[Callable[[NDArray[np.uint8]], NDArray[np.uint8]], ...]:
    """Return what makes each variant but the images (n, H, H, C) themselves, where these are few: mirrored, turned.

    Those of ``shift`` are not among them: they are up to 81 times as many.
    """
    turns, mirrors = range(4 if ROTATE90 in names else 1), range(2 if FLIP in names else 1)
    return tuple(partial(_variant, mirrored=mirrored, turns=k) for mirrored in mirrors for k in turns if mirrored or k)


def _variant(images: NDArray[np.uint8], mirrored: int, turns: int) -> NDArray[np.uint8]:
    return np.ascontiguousarray(np.rot90(images[:, :, ::-1] if mirrored else images, turns, (1, 2)))


def _flip(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def _rotate90(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    turns = torch.randint(4, (len(images),), generator=generator)
    turned = torch.empty_like(images)
    for k in range(4):
        turned[turns == k] = images[turns == k].rot90(k, (2, 3))
    return turned


def _shift(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    most = max(1, images.shape[-1] // SHIFT_SHARE)
    moves = torch.randint(-most, most + 1, (2, len(images), 1), generator=generator)
    rows, columns = (torch.arange(images.shape[-1]) + moves).clamp(0, images.shape[-1] - 1)
    n, channels = torch.arange(len(images))[:, None, None, None], torch.arange(images.shape[1])[:, None, None]
    return images[n, channels, rows[:, None, :, None], columns[:, None, None, :]]


_VARIANTS: dict[str, Callable[[torch.Tensor, torch.Generator], torch.Tensor]] = {
    FLIP: _flip,
    ROTATE90: _rotate90,
    SHIFT: _shift,
}
