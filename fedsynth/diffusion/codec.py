"""Codecs: between stored images and what a network sees, the *grid*.

Networks, noise, messages and mixtures work in the space of the grid alone. ``pixels`` are the images themselves,
scaled to [-1, 1]. ``unshuffle-k`` moves every k×k block of pixels into k² channels (Shi et al. 2016, arXiv 1609.05158,
backwards): a permutation, so that range, noise and every formula of a mixture stay what they are, while a network works
on k² times fewer places.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from fedsynth.config import AUTO, RunConfig
from fedsynth.config.keys import one_of_words
from fedsynth.diffusion.augmentation import augmented
from fedsynth.diffusion.images import to_model_range, to_uint8
from fedsynth.errors import UserError
from fedsynth.spec import ImageSpec

NAMES = {"pixels": 1, "unshuffle-2": 2, "unshuffle-4": 4, "unshuffle-8": 8}
"""Name -> side of the blocks of pixels that become channels."""
LEAST_GRID = 8
"""Side of the smallest grid that ``codec = auto`` chooses."""


@dataclass(frozen=True)
class Codec:
    """``pixels`` or ``unshuffle-k`` for images of one format.

    Attributes:
        spec: format of the images.
        factor: k, side of the blocks of pixels that become channels; 1 for ``pixels``.
    """

    spec: ImageSpec
    factor: int = 1

    @property
    def name(self) -> str:
        """Its word in the configuration."""
        return next(name for name, factor in NAMES.items() if factor == self.factor)

    @property
    def grid(self) -> ImageSpec:
        """What a network sees, and the classes."""
        return ImageSpec(self.spec.channels * self.factor**2, self.spec.size // self.factor, self.spec.classes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, h, w) of the grid."""
        return self.grid.shape

    @property
    def bound(self) -> float:
        """Largest absolute value of clean samples, to which samplers clip."""
        return 1.0

    def encode(self, images: NDArray[np.uint8]) -> torch.Tensor:
        """Turn uint8 images (n, H, W, C) into samples, float32 (n, c, h, w)."""
        return F.pixel_unshuffle(to_model_range(images), self.factor)

    def decode(self, samples: torch.Tensor) -> NDArray[np.uint8]:
        """Turn samples (n, c, h, w) into uint8 images (n, H, W, C); what lies outside the range is clipped."""
        return to_uint8(F.pixel_shuffle(samples, self.factor))

    def from_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Rearrange pixels or their noise (n, C, H, W) as a network sees them (n, c, h, w)."""
        return F.pixel_unshuffle(pixels, self.factor)

    def to_pixels(self, samples: torch.Tensor) -> torch.Tensor:
        """Inverse of :meth:`from_pixels`."""
        return F.pixel_shuffle(samples, self.factor)


@dataclass(frozen=True, eq=False)
class EncodedImages:
    """Stored images as a network sees them; only the rows asked for are converted.

    Attributes:
        images: uint8 (n, H, W, C).
        codec: how they are encoded.
        augment: how they are varied when they are drawn, see :mod:`fedsynth.diffusion.augmentation`.
    """

    images: NDArray[np.uint8]
    codec: Codec
    augment: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the samples (m, c, h, w) at ``rows`` (m,)."""
        return self.codec.encode(self.images[rows.numpy()])

    def draw(self, rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return variants of the samples at ``rows``; the samples themselves without augmentation."""
        if not self.augment:
            return self[rows]
        pixels = torch.from_numpy(self.images[rows.numpy()]).permute(0, 3, 1, 2)
        return self.codec.encode(augmented(pixels, self.augment, generator).permute(0, 2, 3, 1).numpy())


Images = torch.Tensor | EncodedImages
"""Samples (n, c, h, w), or images that become samples batch by batch."""


def codec_of_grid(name: str, grid: ImageSpec) -> Codec:
    """Return the codec of a saved model, by its name and what the network sees.

    Raises:
        UserError: no such codec, or the channels are not those of folded images.
    """
    factor = NAMES.get(name)
    if factor is None:
        raise UserError(f"codec = '{name}' of the saved model: this version of fedsynth knows {', '.join(NAMES)}")
    if grid.channels % factor**2:
        raise UserError(f"codec = '{name}' of the saved model: does not make {grid.channels} channels")
    return Codec(ImageSpec(grid.channels // factor**2, grid.size * factor, grid.classes), factor)


def codec_of(config: RunConfig, spec: ImageSpec) -> Codec:
    """Return the codec of a run's images.

    Raises:
        UserError: the size of the images is no multiple of what it folds.
    """
    return make_codec(config.recipe.codec, spec)


def make_codec(name: str, spec: ImageSpec) -> Codec:
    """Return a codec by its name, or the one that suits the images for ``auto``: the fold to the smallest grid of an
    even side of 8 or above, whole images where there is none.

    Raises:
        UserError: the size of the images is no multiple of what it folds.
    """
    if name == AUTO:
        fits = [k for k in NAMES.values() if spec.size % (2 * k) == 0 and spec.size // k >= LEAST_GRID]
        return Codec(spec, max(fits, default=1))
    factor = NAMES[name]
    if spec.size % factor:
        foldable = [other for other, k in NAMES.items() if spec.size % k == 0]
        raise UserError(
            f"codec = '{name}': image-size = {spec.size} is no multiple of {factor}: set codec ="
            f" {one_of_words(map(repr, foldable))}, or another image-size"
        )
    return Codec(spec, factor)
