"""One image file, read within bounds: known formats, one page, so many pixels, and of its metadata the orientation."""

from __future__ import annotations

import io
import stat
import struct
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from fedsynth.data.dicom import GREY, read_dicom, read_dicom_header
from fedsynth.data.image_formats import HEAD_BYTES, PILLOW_FORMATS, is_dicom, why_unknown
from fedsynth.data.value_range import DeepPixels
from fedsynth.text import printable

T = TypeVar("T")

GREY_MODES = frozenset({"1", "L", "LA", "La", "F", "I", "I;16", "I;16L", "I;16B", "I;16N"})

MAX_PIXELS = 100_000_000
"""A few bytes can claim any number of pixels; so many take up to 2 GB while they are decoded and converted."""
LARGE_PIXELS = 2**24
"""Images of more pixels (4096 x 4096) are first reduced by a whole factor, to at least four times the wanted side."""
_KEPT_FACTOR = 4
_MOST_PAGES_COUNTED = 100
_LONGEST_REASON = 200

_ORIENTATION, _NEW_SUBFILE_TYPE, _BITS_PER_SAMPLE, _PHOTOMETRIC = 0x0112, 254, 258, 262
_WHITE_IS_ZERO, _REDUCED_RESOLUTION = 0, 1
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIXTEEN_BIT_COLOUR = ("RGB;16", "RGBA;16", "RGBX;16", "LA;16")
_OTHER_BYTE = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}


@dataclass(frozen=True)
class Header:
    """What an image file says of itself before it is decoded.

    Attributes:
        size: width and height in pixels, as stored.
        grey: it holds no colour; palettes count as colour.
        deep: it may hold more than 8 bits per value.
    """

    size: tuple[int, int]
    grey: bool
    deep: bool


def read_header(source: Path | bytes) -> Header | None:
    """Read the header of a file, or of its content; None if :func:`read_picture` could read no image there."""
    try:
        return _read_header(source)
    except Exception:  # decode_files opens it again and reports it by name
        return None


def header_problem(path: Path) -> str:
    """Say why :func:`read_header` finds nothing; empty if it does."""
    try:
        _read_header(path)
    except Exception as error:
        return reason_of(error)
    return ""


def reason_of(error: Exception) -> str:
    """Say in a line why a file cannot be read; decoders raise SyntaxError, struct.error, zlib.error and more."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, PermissionError):
        return "may not be read: change its permissions"
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    return printable(str(error), _LONGEST_REASON) or type(error).__name__


def read_picture(source: Path | bytes, side: int | None, first_page_only: bool) -> Image.Image | DeepPixels:
    """Decode a file, turned as its orientation says.

    Args:
        source: the file, or its content. The content decides what it is, not the file's suffix.
        side: pixels that are wanted of the shorter side; see :data:`LARGE_PIXELS`. None: all.
        first_page_only: take the first of several pages or frames. A photo's previews do not count as such.

    Returns:
        An 8-bit image in any mode of Pillow, or values of more than 8 bits.

    Raises:
        ValueError: no known format, too many pixels, several pages; the message says what to do. Decoders raise
            anything else where the file is damaged.
    """
    with _opened(source) as (file, head):
        if is_dicom(head):
            path = _dicom_path(source)
            header = read_dicom_header(path)
            _check_size(header.size)
            _check_pages(header.frames, "frames", first_page_only)
            picture = read_dicom(path, header)
            return picture if isinstance(picture, DeepPixels) else _reduced(picture, side)
        return _or_without_text(file, lambda source: _decoded(source, head, side, first_page_only))


def _read_header(source: Path | bytes) -> Header:
    with _opened(source) as (file, head):
        if is_dicom(head):
            dicom = read_dicom_header(_dicom_path(source))
            return Header(dicom.size, dicom.photometric in GREY, dicom.deep)
        return _or_without_text(file, lambda source: _header(source, head))


@contextmanager
def _opened(source: Path | bytes) -> Iterator[tuple[BinaryIO, bytes]]:
    if isinstance(source, Path):
        status = source.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a regular file")
        size = status.st_size
    else:
        size = len(source)
    if size == 0:
        raise ValueError("an empty file")
    with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metadata that is not used
        head = file.read(HEAD_BYTES)
        file.seek(0)
        yield file, head


def _dicom_path(source: Path | bytes) -> Path:
    if isinstance(source, Path):
        return source
    raise ValueError("DICOM in a table, which is not read: save it as a file of its own")


@contextmanager
def _recognised(file: BinaryIO, head: bytes) -> Iterator[Image.Image]:
    try:
        with Image.open(file, formats=PILLOW_FORMATS) as image:
            _check_size(image.size)
            yield image
    except UnidentifiedImageError:
        raise ValueError(why_unknown(head)) from None
    except Image.DecompressionBombError:
        raise ValueError(_too_large("")) from None


def _check_size(size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise ValueError(_too_large(f"{width} x {height} pixels, "))


def _too_large(size: str) -> str:
    return f"{size}more than the {MAX_PIXELS // 10**6} megapixels that are safe to decode: scale it down"


def _check_pages(pages: int, word: str, first_page_only: bool) -> None:
    if pages > 1 and not first_page_only:
        number = f"more than {_MOST_PAGES_COUNTED}" if pages > _MOST_PAGES_COUNTED else pages
        raise ValueError(f"{number} {word}: save each as a file, or set first-page-only=true to take the first")


def _header(file: BinaryIO, head: bytes) -> Header:
    with _recognised(file, head) as image:
        return Header(image.size, image.mode in GREY_MODES, _is_deep(image))


def _decoded(file: BinaryIO, head: bytes, side: int | None, first_page_only: bool) -> Image.Image | DeepPixels:
    with _recognised(file, head) as image:
        if not first_page_only:
            _check_pages(_pages(image), "pages", first_page_only)
        if _is_deep(image):
            return _deep(image, file)
        if isinstance(image, TiffImagePlugin.TiffImageFile) and max(image.tag_v2.get(_BITS_PER_SAMPLE, (1,))) > 8:
            # Pillow would keep the upper 8 bits without a word.
            raise ValueError("more than 8 bits per channel in a layout that is not read: save it as interleaved RGB")
        if image.format in ("JPEG", "MPO") and side and image.width * image.height > LARGE_PIXELS:
            image.draft(None, (_KEPT_FACTOR * side, _KEPT_FACTOR * side))
        image.load()
        small = _reduced(image, side)
        turn = _turn(image)
        return small if turn is None else small.transpose(turn)


def _pages(image: Image.Image) -> int:
    if image.format == "MPO":
        return 1  # a photo with previews
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return int(getattr(image, "n_frames", 1))
    pages = 0
    try:
        for number in range(_MOST_PAGES_COUNTED + 1):
            image.seek(number)
            pages += not image.tag_v2.get(_NEW_SUBFILE_TYPE, 0) & _REDUCED_RESOLUTION
    except Exception:  # no more pages, or what follows is none
        pass
    image.seek(0)
    return pages


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    turn = _turn(image)
    return image if turn is None else image.transpose(turn)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What the orientation asks for, whatever stands in other tags."""
    exif = image.info.get("exif")
    try:
        return _TURNS.get(_orientation(exif) if isinstance(exif, bytes) else image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged metadata of a sound image
        return None


def _orientation(exif: bytes) -> int:
    """Find the tag in a block of EXIF (a TIFF directory): others may be damaged, which ends Pillow's reading early."""
    tiff = exif.removeprefix(b"Exif\0\0").removeprefix(b"Exif\0\0")
    order = "<" if tiff.startswith(b"II") else ">"
    (start,) = struct.unpack_from(f"{order}I", tiff, 4)
    (count,) = struct.unpack_from(f"{order}H", tiff, start)
    for entry in range(count):
        tag, _, _, value = struct.unpack_from(f"{order}HHIH", tiff, start + 2 + 12 * entry)
        if tag == _ORIENTATION:
            return int(value)
    return 1


def _reduced(picture: Image.Image, side: int | None) -> Image.Image:
    if side is None or picture.width * picture.height <= LARGE_PIXELS:
        return picture
    factor = min(picture.size) // (_KEPT_FACTOR * side)
    if factor < 2:
        return picture
    if picture.mode in ("1", "P", "PA"):
        picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    return picture.reduce(factor)


def _rawmode(image: Image.Image) -> str:
    """How the decoder is told that values are stored; empty if that is not known."""
    tile: Any = image.tile[0] if getattr(image, "tile", None) else None  # type: ignore[attr-defined]
    arguments = tile.args if tile else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _is_deep(image: Image.Image) -> bool:
    colour = image.mode in ("RGB", "RGBA") and _rawmode(image).startswith(_SIXTEEN_BIT_COLOUR)
    return colour or image.mode.startswith(("I", "F"))


def _deep(image: Image.Image, file: BinaryIO) -> DeepPixels:
    inverted = False
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        inverted = image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    if image.mode.startswith(("I", "F")):
        return DeepPixels(np.asarray(_upright(image)), inverted)
    channels = _sixteen_bits(image, file)
    alpha = None
    if image.mode == "RGBA":
        alpha = np.rint(channels[..., -1] / 257).astype(np.uint8)
        channels = channels[..., :-1]
    return DeepPixels(channels.squeeze(-1) if channels.shape[-1] == 1 else channels, inverted, alpha)


def _sixteen_bits(image: Image.Image, file: BinaryIO) -> NDArray[np.uint16]:
    """Return all channels, (H, W, 2 to 4): Pillow keeps the upper byte of 16-bit colour only.

    Told that the bytes come in the other order, it keeps the lower one.
    """
    rawmode = _rawmode(image)
    if rawmode.startswith("LA"):
        # Four bytes per pixel, which Pillow can hand out as they are.
        values = np.asarray(_upright(_with_rawmode(image, "RGBA")))
        return _joined(values[..., ::2], values[..., 1::2])
    upper = np.asarray(_upright(image))
    file.seek(0)
    with Image.open(file, formats=PILLOW_FORMATS) as again:
        lower = np.asarray(_upright(_with_rawmode(again, rawmode[:-1] + _OTHER_BYTE[rawmode[-1]])))
    return _joined(upper, lower)


def _joined(upper: NDArray[np.uint8], lower: NDArray[np.uint8]) -> NDArray[np.uint16]:
    return upper.astype(np.uint16) * np.uint16(256) + lower


def _with_rawmode(image: Any, rawmode: str) -> Image.Image:
    def changed(arguments: Any) -> Any:
        return (rawmode, *arguments[1:]) if isinstance(arguments, tuple) else rawmode

    image.tile = [tile._replace(args=changed(tile.args)) for tile in image.tile]
    opened: Image.Image = image
    return opened


def _or_without_text(file: BinaryIO, read: Callable[[BinaryIO], T]) -> T:
    """Read a file; again without colour profile and text, which nobody uses, if those are beyond Pillow's bound."""
    try:
        return read(file)
    except ValueError as error:
        if "MAX_TEXT" not in str(error):
            raise
        return read(_without_text(file))


def _without_text(file: BinaryIO) -> BinaryIO:
    """Return a PNG without colour profile and text; it keeps its EXIF block."""
    end = file.seek(0, io.SEEK_END)
    file.seek(0)
    kept = io.BytesIO()
    kept.write(file.read(8))
    while len(start := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", start)
        if kind in (b"iCCP", b"zTXt", b"iTXt", b"tEXt"):
            file.seek(length + 4, io.SEEK_CUR)
        else:
            kept.write(start + file.read(min(length + 4, end)))  # a length may lie
    kept.seek(0)
    return kept
