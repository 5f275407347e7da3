"""Image files of every kind that folders hold, written by hand where Pillow writes none of the kind."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from PIL import Image


def in_format(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The bytes of a file that Pillow writes."""
    buffer = io.BytesIO()
    image.copy().save(buffer, kind, **options)  # saving leaves traces on an image
    return buffer.getvalue()


def png(pixels: NDArray[Any], *chunks: tuple[bytes, bytes], size: tuple[int, int] | None = None) -> bytes:
    """A PNG of uint8 or uint16 (H, W) or (H, W, 2 to 4), with further chunks; ``size`` lies about width and height."""
    height, width = pixels.shape[:2]
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[1 if pixels.ndim == 2 else pixels.shape[2]]
    kind = pixels.dtype.newbyteorder(">")
    rows = b"".join(b"\0" + row.astype(kind).tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", *(size or (width, height)), 8 * kind.itemsize, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*part) for part in parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def tiff(
    pixels: NDArray[Any], photometric: int = 1, tags: Mapping[int, int] | None = None, deflated: bool = False
) -> bytes:
    """A TIFF of any NumPy type and byte order, (H, W) or (H, W, C); ``tags`` are 16-bit numbers."""
    order = ">" if pixels.dtype.byteorder == ">" else "<"
    height, width = pixels.shape[:2]
    samples = 1 if pixels.ndim == 2 else pixels.shape[2]
    data = zlib.compress(pixels.tobytes()) if deflated else pixels.tobytes()
    data += b"\0" * (len(data) % 2)
    bits, kind = 8 * pixels.dtype.itemsize, {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    numbers = {
        256: (width,),
        257: (height,),
        258: (bits,) * samples,
        259: (8 if deflated else 1,),
        262: (photometric,),
        273: (8,),
    }
    numbers |= {277: (samples,), 278: (height,), 279: (len(data),), 339: (kind,) * samples}
    numbers |= {tag: (value,) for tag, value in (tags or {}).items()}
    start = 8 + len(data)
    body, beyond = struct.pack(f"{order}H", len(numbers)), b""
    for tag, values in sorted(numbers.items()):
        packed = struct.pack(f"{order}{len(values)}I", *values)
        kind_of_tag, packed = (4, packed) if tag in (273, 279) else (3, struct.pack(f"{order}{len(values)}H", *values))
        if len(packed) > 4:
            place = start + 2 + 12 * len(numbers) + 4 + len(beyond)
            beyond += packed
            packed = struct.pack(f"{order}I", place)
        body += struct.pack(f"{order}HHI", tag, kind_of_tag, len(values)) + packed.ljust(4, b"\0")
    head = b"MM\0*" if order == ">" else b"II*\0"
    return head + struct.pack(f"{order}I", start) + data + body + b"\0\0\0\0" + beyond


def exif(orientation: int, before: bytes = b"", order: str = "<") -> bytes:
    """An EXIF block with an orientation, after ``before``: whole entries of 12 bytes."""
    entries = before + struct.pack(f"{order}HHIHH", 0x0112, 3, 1, orientation, 0)
    head = b"II*\0" if order == "<" else b"MM\0*"
    return b"Exif\0\0" + head + struct.pack(f"{order}IH", 8, len(entries) // 12) + entries + b"\0\0\0\0"


def dicom(pixels: NDArray[Any], photometric: str = "MONOCHROME2", compress: bool = False, **elements: Any) -> bytes:
    """A DICOM file of one frame, (H, W) or (H, W, 3), of a patient whose name nobody may read."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, RLELossless, SecondaryCaptureImageStorage, generate_uid

    dataset, meta = Dataset(), FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta = meta
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.PatientName, dataset.PatientID = "SECRET^PATIENT", "SECRET-ID"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = photometric
    bits = 8 * pixels.dtype.itemsize
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    for name, value in elements.items():
        setattr(dataset if name != "TransferSyntaxUID" else meta, name, value)
    if compress:
        dataset.compress(RLELossless, generate_instance_uid=False)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def written(folder: Path, name: str, data: bytes) -> Path:
    """Write a file, and return its path."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path
