"""Images of more than 8 bits: which stored values become black and white."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedsynth.config import AUTO
from fedsynth.config.data import Data

_FIX = "set value-range=low,high (such as value-range=-1000,1000), or save it with 8 or 16 bits"
_ROWS = 256
"""Rows scaled at once: float64 takes eight times the memory of the result."""


@dataclass(frozen=True)
class ValueRange:
    """Stored values that become 0 and 255; values beyond them are cut off.

    Attributes:
        low: becomes black.
        high: becomes white, greater than ``low``.
        chosen: by the user, who knows what the values mean. Otherwise only whole numbers from 0 to 65535 are taken.
    """

    low: float
    high: float
    chosen: bool = False


FULL_RANGE = ValueRange(0, 65535)


def configured_range(data: Data) -> ValueRange | None:
    """Return what the key ``value-range`` says; None: the range is to be found."""
    if data.value_range == AUTO:
        return None
    bounds = data.value_bounds()
    return FULL_RANGE if bounds is None else ValueRange(*bounds, chosen=True)


@dataclass(frozen=True, eq=False)
class DeepPixels:
    """The values of an image of more than 8 bits, as they are stored.

    Attributes:
        values: grey (H, W) or colour (H, W, 3), whole numbers or floats.
        inverted: the smallest value is white, as in radiographs (DICOM's MONOCHROME1, TIFF's WhiteIsZero).
        alpha: uint8 (H, W), 0 where the image is transparent; None: it has no such channel.
    """

    values: NDArray[np.generic]
    inverted: bool = False
    alpha: NDArray[np.uint8] | None = None

    def largest(self) -> float:
        """Return the largest value.

        Raises:
            ValueError: only a chosen range can show these values.
        """
        low, high = float(self.values.min()), float(self.values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("values that are no numbers (NaN or infinity): save it without them")
        if np.issubdtype(self.values.dtype, np.floating):
            raise ValueError(f"floating-point pixels: {_FIX}")
        if low < 0:
            raise ValueError(f"negative pixel values: {_FIX}")
        if high > FULL_RANGE.high:
            raise ValueError(f"pixel values beyond 16 bits: {_FIX}")
        return high

    def to_eight_bit(self, scale: ValueRange) -> Image.Image:
        """Return the image in mode L, LA, RGB or RGBA: ``255 (value - low) / (high - low)``, rounded and cut off.

        Raises:
            ValueError: the range was not chosen, and cannot show these values; or some are no numbers.
        """
        if not scale.chosen or np.isnan(self.values).any():
            self.largest()
        if self.values.dtype == np.uint16:
            scaled = _scaled(np.arange(2**16), scale)[self.values]
        else:
            scaled = np.empty(self.values.shape, np.uint8)
            for top in range(0, len(scaled), _ROWS):
                scaled[top : top + _ROWS] = _scaled(self.values[top : top + _ROWS], scale)
        image = Image.fromarray(255 - scaled if self.inverted else scaled)
        if self.alpha is not None:
            image.putalpha(Image.fromarray(self.alpha))
        return image


def _scaled(values: NDArray[np.generic], scale: ValueRange) -> NDArray[np.uint8]:
    exact = (values.astype(np.float64) - scale.low) * 255 / (scale.high - scale.low)
    return np.clip(np.rint(exact), 0, 255).astype(np.uint8)


def whole_bits(largest: float) -> ValueRange:
    """Return 0 to the largest number of as many bits as ``largest`` takes: 0 to 4095 for 3071.

    The exact maximum of a data set would be a value of one image, and move with every image that is added.
    """
    return ValueRange(0, 2 ** max(1, int(largest).bit_length()) - 1)
