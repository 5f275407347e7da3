"""DICOM files, as scanners write them: the pixels, and nothing that says whose they are."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedsynth.data.value_range import DeepPixels

GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_RESCALING = ("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence")
_HEADER = ("Rows", "Columns", "PhotometricInterpretation", "NumberOfFrames", "BitsAllocated", *_RESCALING)
_DEFLATED = ("1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205")


@dataclass(frozen=True)
class DicomHeader:
    """What the header says of the pixels.

    Attributes:
        size: width and height.
        photometric: DICOM's photometric interpretation.
        frames: their number.
        deep: values may have more than 8 bits, as they are stored or rescaled.
        transfer_syntax: how the pixels are written, in DICOM's words.
    """

    size: tuple[int, int]
    photometric: str
    frames: int
    deep: bool
    transfer_syntax: str


def read_dicom_header(path: Path) -> DicomHeader:
    """Read what says how the pixels are stored.

    Raises:
        ValueError: the file is damaged, its pixels are of a kind that is not read, or pydicom is not installed. No
            text of the file is part of the message.
    """
    if find_spec("pydicom") is None:
        raise ValueError("DICOM, which needs one more package: pip install 'fedsynth[dicom]'")
    from pydicom import dcmread  # an extra, and slow to import
    from pydicom.filereader import read_file_meta_info
    from pydicom.uid import UID

    logging.getLogger("pydicom").disabled = True  # it quotes what the file says, as its errors and warnings do
    with _silent("DICOM that cannot be parsed: it is damaged"):
        syntax = UID(str(read_file_meta_info(path).TransferSyntaxUID))
    if syntax in _DEFLATED:
        # Unpacking has no limit: a small file may fill the memory.
        raise ValueError("DICOM packed with deflate, which is not read: write it uncompressed, such as with 'dcmconv'")
    with _silent("DICOM without an image: it lacks rows, columns, bits or a photometric interpretation"):
        dataset = dcmread(path, specific_tags=list(_HEADER), stop_before_pixels=True)
        size = int(dataset.Columns), int(dataset.Rows)
        photometric = str(dataset.PhotometricInterpretation)
        frames = int(dataset.get("NumberOfFrames") or 1)
        deep = dataset.BitsAllocated > 8 or any(name in dataset for name in _RESCALING)
    if photometric not in GREY + _COLOUR:
        raise ValueError(f"DICOM whose photometric interpretation is none of {', '.join(GREY + _COLOUR)}")
    return DicomHeader(size, photometric, frames, deep, syntax.name if syntax.is_transfer_syntax else "")


def read_dicom(path: Path, header: DicomHeader) -> DeepPixels | Image.Image:
    """Return the first frame: the stored values, rescaled as the file says (such as to Hounsfield units).

    No window is applied: it was chosen for one image, and would take away how images differ. 8-bit images that are
    not rescaled come as they are, colour as RGB.

    Args:
        path: the file.
        header: what :func:`read_dicom_header` says of it.

    Raises:
        ValueError: the pixels cannot be decoded; no text of the file is part of the message.
    """
    from pydicom import Dataset
    from pydicom.pixels.processing import apply_modality_lut
    from pydicom.pixels.utils import pixel_array

    damaged = "DICOM whose pixels cannot be decoded: it is damaged"
    if header.transfer_syntax == "":
        damaged = "DICOM of an unknown transfer syntax: write it uncompressed"
    elif "Endian" not in header.transfer_syntax:
        damaged = (
            f"DICOM compressed as {header.transfer_syntax}, damaged or without a decoder here: write it uncompressed,"
            " such as with 'gdcmconv --raw'"
        )
    found = Dataset()
    with _silent(damaged):
        stored = pixel_array(path, index=0, ds_out=found)
        values = _whole(apply_modality_lut(stored, found)) if _is_rescaled(stored, found) else stored
    inverted = header.photometric == "MONOCHROME1"
    if values is stored and stored.dtype == np.uint8:
        return Image.fromarray(255 - stored if inverted else stored)
    return DeepPixels(values, inverted)


def _is_rescaled(stored: NDArray[Any], found: Any) -> bool:
    if stored.ndim != 2:
        return False
    scale = float(found.get("RescaleSlope", 1)), float(found.get("RescaleIntercept", 0))
    return "ModalityLUTSequence" in found or scale != (1, 0)


def _whole(values: NDArray[Any]) -> NDArray[Any]:
    """Return whole numbers as such: rescaling makes floats of them."""
    if not np.issubdtype(values.dtype, np.floating):
        return values
    with np.errstate(invalid="ignore"):
        whole = values.astype(np.int32)
    return whole if np.array_equal(whole, values) else values


@contextmanager
def _silent(reason: str) -> Iterator[None]:
    """Turn every error into ``reason``, and drop warnings: their texts quote the file, which may name a patient."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception:  # pydicom's own, struct.error, OSError, RecursionError, MemoryError and more
        raise ValueError(reason) from None
