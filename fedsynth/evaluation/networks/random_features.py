"""Features that nobody has trained: a small convolutional network whose weights are the same everywhere, for ever.

Random networks rank sets of images usefully where trained ones are out of place (Naeem et al. 2020, arXiv 2002.09797).
What matters more here: no server has chosen it, so that a silo can say what its images look like in it, and numbers of
different runs are in one space.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedsynth.errors import unknown_choice
from fedsynth.evaluation.networks.domain_classifier import scale_pixels
from fedsynth.evaluation.networks.extractor import Extractor, Images, Outputs, digest

RANDOM_FEATURES = "random-features"
DIMENSION = 32
"""Sums and products of so few are fewer numbers (560) than fifty images of 8 x 8 pixels have, 3,200."""
WEIGHTS_SEED = 1
CHANNELS = 32
GRID = 4
LEVELS = 4
SMALLEST_LEVEL, LARGEST_LEVEL = 8, 127
SLOPE = 0.2
SCALE = 1.75
"""Brings the longest features of photographs, digits and noise of 8 to 64 pixels to 0.7 to 0.9, so that clipping at 1
hardly acts; only images of random black and white pixels reach it."""


class RandomFeatures(Extractor):
    """A pyramid of half-sized images, each seen through two random convolutions and projected to 32 numbers.

    Every level, from the image itself down to one of 8 to 15 pixels, goes through 32 random filters (24 of them sum up
    to zero and see no flat grey), then 32 random mixtures of those; their means in a 4 x 4 grid are projected by random
    weights of the level, and the levels are added up. Images of 128 pixels and more are halved until they have fewer.
    Grey images are seen as colour ones.
    """

    def __init__(self) -> None:
        self._weights = _weights()
        super().__init__(RANDOM_FEATURES, DIMENSION, digest(RANDOM_FEATURES, weights=self._weights))

    def _outputs(self, images: Images) -> Outputs:
        return self.of_pixels(torch.from_numpy(scale_pixels(images)).permute(0, 3, 1, 2)), None

    def of_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map pixels -1 to 1, float32 (N, 1 or 3, H, W), to features (N, 32)."""
        level = pixels.expand(-1, 3, -1, -1)
        while min(level.shape[2:]) > LARGEST_LEVEL:
            level = nn.functional.avg_pool2d(level, 2)
        levels = [level]
        while min(level.shape[2:]) >= 2 * SMALLEST_LEVEL:
            level = nn.functional.avg_pool2d(level, 2)
            levels.append(level)
        # From the smallest: the projection of a level does not depend on how large the images are.
        seen = [self._seen(level, number) for number, level in enumerate(reversed(levels))]
        return torch.stack(seen).sum(dim=0)

    def _seen(self, level: torch.Tensor, number: int) -> torch.Tensor:
        """Map pixels (N, 3, H, W) of one level to (N, 32)."""
        for name in ("first", "second"):
            padded = nn.functional.pad(level, (1, 1, 1, 1), mode="replicate")
            level = nn.functional.leaky_relu(nn.functional.conv2d(padded, self._weights[name]), SLOPE)
        means = nn.functional.adaptive_avg_pool2d(level, GRID).flatten(start_dim=1)
        return means @ self._weights[f"level-{number}"].T


@cache
def _weights() -> dict[str, torch.Tensor]:
    """Draw all weights, bit for bit the same on every machine: of NumPy, only raw bits are promised to stay."""
    source = np.random.PCG64(WEIGHTS_SEED)
    first, second = _uniform(source, CHANNELS, 3, 3, 3), _uniform(source, CHANNELS, CHANNELS, 3, 3)
    for kernel in first[CHANNELS // 4 :].reshape(-1, 9):
        kernel -= math.fsum(kernel) / 9
    drawn = {"first": first / math.sqrt(3 * 9), "second": second / math.sqrt(CHANNELS * 9)}
    fan_in = CHANNELS * GRID * GRID
    for level in range(LEVELS):
        drawn[f"level-{level}"] = _uniform(source, DIMENSION, fan_in) * (SCALE / math.sqrt(fan_in * DIMENSION))
    return {name: torch.from_numpy(values).float() for name, values in drawn.items()}


def _uniform(source: np.random.PCG64, *shape: int) -> npt.NDArray[np.float64]:
    """Draw from -√3 to √3: mean 0, variance 1."""
    bits = source.random_raw(math.prod(shape)) >> np.uint64(11)
    drawn: npt.NDArray[np.float64] = (bits.astype(np.float64) * 2.0**-52 - 1.0) * math.sqrt(3.0)
    return drawn.reshape(shape)


TRUSTED = {RANDOM_FEATURES: RandomFeatures}
"""Networks that a silo has itself, by the name in its policy's ``extractors``."""


def trusted_extractor(name: str) -> Extractor:
    """Build a network that a silo has itself.

    Raises:
        UserError: there is none of that name.
    """
    if name not in TRUSTED:
        raise unknown_choice("extractor", name, TRUSTED)
    return TRUSTED[name]()
