"""From any image file to a uint8 array of the wanted size and channels."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fedsynth.data.image_cache import ImageCache, file_states, read_images
from fedsynth.data.image_files import read_header, read_picture, reason_of
from fedsynth.data.kept_facts import kept_facts
from fedsynth.data.value_range import FULL_RANGE, DeepPixels, ValueRange, whole_bits
from fedsynth.errors import FilesError
from fedsynth.progress import followed
from fedsynth.text import visible

logger = logging.getLogger("fedsynth")

_NAMED = 10


def to_pixels(
    picture: Image.Image | DeepPixels, size: int, channels: int, value_range: ValueRange = FULL_RANGE
) -> NDArray[np.uint8]:
    """Convert a picture of any mode to uint8 (size, size, channels).

    Values of more than 8 bits are scaled first. Transparent pixels are laid on white. A non-square image is cropped to
    its centre square, then resized (bicubic, with anti-aliasing).

    Args:
        picture: an 8-bit image, or values of more than 8 bits.
        size: height and width of the result in pixels.
        channels: 1 (grey, ITU-R 601 luma) or 3 (RGB).
        value_range: what of more than 8 bits becomes black and white.

    Raises:
        ValueError: values that only a chosen range can show, or transparent pixels only.
    """
    image = picture.to_eight_bit(value_range) if isinstance(picture, DeepPixels) else picture
    flat = _opaque(image).convert("L" if channels == 1 else "RGB")
    if flat.size != (size, size):
        flat = ImageOps.fit(flat, (size, size), method=Image.Resampling.BICUBIC)
    return np.asarray(flat, dtype=np.uint8).reshape(size, size, channels)


def _opaque(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image
    coloured = image.convert("RGBA")
    if coloured.getchannel("A").getextrema() == (0, 0):
        raise ValueError("every pixel is transparent (alpha 0): save it without transparency")
    return Image.alpha_composite(Image.new("RGBA", coloured.size, "white"), coloured)


def conform(images: NDArray[np.uint8], size: int, channels: int) -> NDArray[np.uint8]:
    """Convert uint8 (N, H, W, 1 or 3) to (N, size, size, channels) as :func:`to_pixels` does."""
    if images.shape[1:] == (size, size, channels):
        return images
    result = np.empty((len(images), size, size, channels), np.uint8)
    for row, image in zip(result, images, strict=True):
        row[:] = to_pixels(Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image), size, channels)
    return result


def find_value_range(
    paths: Sequence[Path], *, first_page_only: bool = False, cache: ImageCache | None = None
) -> ValueRange:
    """Return the range that a data set's files of more than 8 bits use together, in whole bits, and log it.

    One range for all of them: how bright an image is beside others carries meaning. Only such files are decoded; what
    cannot be read, or needs a chosen range, is left to :func:`decode_files`.

    Args:
        paths: all files of the data set, of every fold and class.
        first_page_only: as of :func:`decode_files`.
        cache: keeps what is found, so that the next process need not look.
    """

    def look() -> tuple[float, ...]:
        return _largest_deep(paths, first_page_only)

    largest, files = kept_facts(look, cache, len(paths), paths, "largest value", first_page_only)
    if not files:
        return FULL_RANGE
    found = whole_bits(largest)
    logger.info(
        "%d images of more than 8 bits use %d bits: 0 becomes black, %d white (value-range=0,%d says the same for every"
        " silo)",
        *(files, int(found.high).bit_length(), found.high, found.high),
    )
    return found


def _largest_deep(paths: Iterable[Path], first_page_only: bool) -> tuple[float, int]:
    """Return the largest value in files of more than 8 bits, and the number of these files."""
    largest, files = -1.0, 0
    for path in paths:
        header = read_header(path)
        if header is None or not header.deep:
            continue
        try:
            picture = read_picture(path, None, first_page_only)
            if isinstance(picture, DeepPixels):
                largest = max(largest, picture.largest())
                files += 1
        except Exception:  # decode_files reports it by name
            continue
    return largest, files


def decode_files(
    paths: Sequence[Path],
    size: int,
    channels: int,
    *,
    skip_bad_images: bool,
    value_range: ValueRange = FULL_RANGE,
    first_page_only: bool = False,
    cache: ImageCache | None = None,
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Decode image files completely, as :func:`~fedsynth.data.image_files.read_picture` and :func:`to_pixels` do.

    Args:
        paths: the files.
        size: height and width in pixels.
        channels: 1 or 3.
        skip_bad_images: leave out what cannot be decoded, with a logged warning, instead of refusing.
        value_range: what of more than 8 bits becomes black and white; :func:`find_value_range` finds it.
        first_page_only: take the first of several pages or frames instead of refusing.
        cache: receives large sets, decoded; None: they are held in memory.

    Returns:
        The decoded images, uint8 (M, size, size, channels), and a mask (N,) of the files they come from.

    Raises:
        FilesError: a file cannot be decoded and ``skip_bad_images`` is false; the first ten are named.
    """

    def read(path: Path) -> NDArray[np.uint8]:
        return to_pixels(read_picture(path, size, first_page_only), size, channels, value_range)

    def fill(out: NDArray[np.uint8]) -> NDArray[np.bool_]:
        return decode_all(out, followed(paths, "reading images:", logger.info), read, str, skip_bad_images)

    settings = [skip_bad_images, astuple(value_range), first_page_only]
    return read_images((len(paths), size, size, channels), fill, cache, lambda: [file_states(paths), settings])


Source = TypeVar("Source")


def decode_all(
    out: NDArray[np.uint8],
    sources: Iterable[Source],
    read: Callable[[Source], NDArray[np.uint8]],
    name: Callable[[Source], str],
    skip_bad_images: bool,
) -> NDArray[np.bool_]:
    """Write what ``read`` makes of each source to its row of ``out`` (N, H, W, C).

    Args:
        out: receives the images.
        sources: as many as ``out`` has rows.
        read: decodes one.
        name: says what it is, for errors.
        skip_bad_images: as of :func:`decode_files`.

    Returns:
        A mask (N,) of the rows that hold an image.

    Raises:
        FilesError: as :func:`decode_files` does.
    """
    bad: dict[int, str] = {}
    for position, source in enumerate(sources):
        try:
            out[position] = read(source)
        except Exception as error:  # decoders raise SyntaxError, struct.error, zlib.error and more
            bad[position] = f"{visible(name(source))} ({reason_of(error)})"
    good = np.ones(len(out), dtype=bool)
    good[list(bad)] = False
    if bad:
        rest = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        message = f"{len(bad)} of {len(out)} images cannot be read: {'; '.join([*bad.values()][:_NAMED])}{rest}"
        if not skip_bad_images:
            raise FilesError(
                f"{message}. Repair or remove them, or set skip-bad-images=true to leave them out",
                elsewhere=f"{len(bad)} images cannot be read: the silo's log says which and why; skip-bad-images=true"
                " leaves them out",
            )
        logger.warning("skipped: %s", message)
    return good
