"""From any image file to a uint8 array of the wanted size and channels."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fedsynth.errors import UserError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})
"""Files with another suffix are not read; in lower case, torchvision's ``IMG_EXTENSIONS``."""

GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N"})
_NAMED = 10


def to_pixels(image: Image.Image, size: int, channels: int) -> NDArray[np.uint8]:
    """Convert a PIL image of any mode to uint8 (size, size, channels).

    16-bit values are divided by 257 (65535 becomes 255), transparent pixels are laid on white, the orientation in the
    file's EXIF data is applied. A non-square image is cropped to its centre square, then resized (bicubic, with
    anti-aliasing).

    Args:
        image: the picture.
        size: height and width of the result in pixels.
        channels: 1 (grey, ITU-R 601 luma) or 3 (RGB).

    Raises:
        ValueError: floating-point pixels, or integers beyond 16 bits, whose range nobody can know.
    """
    upright = ImageOps.exif_transpose(image)
    flat = _opaque(_eight_bit(upright)).convert("L" if channels == 1 else "RGB")
    if flat.size != (size, size):
        flat = ImageOps.fit(flat, (size, size), method=Image.Resampling.BICUBIC)
    return np.asarray(flat, dtype=np.uint8).reshape(size, size, channels)


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels, save it with 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("pixel values beyond 16 bits, save it with 8 or 16 bits")
    return Image.fromarray(np.rint(values / 257).astype(np.uint8))


def _opaque(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image
    coloured = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", coloured.size, "white"), coloured)


def conform(images: NDArray[np.uint8], size: int, channels: int) -> NDArray[np.uint8]:
    """Convert uint8 (N, H, W, 1 or 3) to (N, size, size, channels) as :func:`to_pixels` does."""
    if images.shape[1:] == (size, size, channels):
        return images
    result = np.empty((len(images), size, size, channels), np.uint8)
    for row, image in zip(result, images, strict=True):
        row[:] = to_pixels(Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image), size, channels)
    return result


def decode_files(
    paths: Sequence[Path], size: int, channels: int, *, skip_bad_images: bool
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Decode image files completely, as :func:`to_pixels` does.

    Args:
        paths: the files.
        size: height and width in pixels.
        channels: 1 or 3.
        skip_bad_images: leave out what cannot be decoded, with a logged warning, instead of refusing.

    Returns:
        The decoded images, uint8 (M, size, size, channels), and a mask (N,) of the files they come from.

    Raises:
        UserError: a file cannot be decoded and ``skip_bad_images`` is false; the first ten are named.
    """
    images = np.empty((len(paths), size, size, channels), np.uint8)
    bad: dict[int, str] = {}
    for position, path in enumerate(paths):
        try:
            with Image.open(path) as image:
                images[position] = to_pixels(image, size, channels)
        except Exception as error:  # decoders raise SyntaxError, struct.error, zlib.error and more
            bad[position] = f"{path} ({_reason(error)})"
    if not bad:
        return images, np.ones(len(paths), dtype=bool)
    rest = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
    message = f"{len(bad)} of {len(paths)} images cannot be read: {'; '.join([*bad.values()][:_NAMED])}{rest}"
    if not skip_bad_images:
        raise UserError(f"{message}. Repair or remove them, or set skip-bad-images=true to leave them out")
    logging.getLogger("fedsynth").warning("skipped: %s", message)
    good = np.ones(len(paths), dtype=bool)
    good[list(bad)] = False
    return images[good], good


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    # Pillow repeats the path in this message, which already stands in front of it.
    return "not an image" if "cannot identify image file" in str(error) else str(error) or type(error).__name__
