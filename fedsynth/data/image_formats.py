"""Which image files are read, told by suffix when folders are listed and by their first bytes when they are opened."""

from __future__ import annotations

from PIL import features

READ_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp", ".gif", ".jp2", ".avif"),
        ".dcm",
    }
)
"""Suffixes of files that are read, in lower case; .dcm needs the extra ``dicom``."""
IMAGE_SUFFIXES = READ_SUFFIXES | {".heic", ".heif"}
"""Suffixes of files that count as images: what cannot be read is refused by name, and never just missing."""

PILLOW_FORMATS = ("JPEG", "PNG", "BMP", "PPM", "TIFF", "WEBP", "GIF", "JPEG2000", "AVIF")
"""What Pillow may take a file for, whatever its name: one of its other decoders starts a PostScript interpreter."""

HEAD_BYTES = 132
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_FEATURES = {"AVIF": "avif", "JPEG 2000": "jpg_2000", "WebP": "webp"}


def is_dicom(head: bytes) -> bool:
    """Say whether a file with these first bytes is DICOM."""
    return head[128:132] == b"DICM"


def why_unknown(head: bytes) -> str:
    """Say why Pillow knows no image in a file with these first bytes, and what to do."""
    if head[4:8] == b"ftyp" and head[8:12] in _HEIC_BRANDS:
        return "HEIC, which is not read: export it as JPEG or PNG"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "a kind of TIFF that is not read, or damaged: save it as grey or RGB with 8 or 16 bits"
    name = _announced(head)
    if name in _FEATURES and not features.check(_FEATURES[name]):
        return f"{name}, which this installation of Pillow cannot read: pip install --force-reinstall pillow"
    return "not an image"


def _announced(head: bytes) -> str:
    if head[4:12] in (b"ftypavif", b"ftypavis"):
        return "AVIF"
    if head.startswith((b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")):
        return "JPEG 2000"
    return "WebP" if head[:4] == b"RIFF" and head[8:12] == b"WEBP" else ""
