"""DICOM: the pixels as a scanner means them, and never a word of the patient."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_examples import dicom, in_format, written
from numpy.typing import NDArray
from PIL import Image

from fedsynth.data import read_image_folder
from fedsynth.data.image_files import read_picture
from fedsynth.data.pixels import decode_files, find_value_range
from fedsynth.data.value_range import FULL_RANGE, DeepPixels, ValueRange
from fedsynth.errors import UserError

TWELVE = np.array([[0, 1000], [2048, 4095]], np.uint16)
BYTES = np.array([[0, 10], [200, 255]], np.uint8)
COLOUR = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [200, 100, 50]]], np.uint8)
CT = {"RescaleSlope": "1", "RescaleIntercept": "-1024"}
UNITS = ValueRange(-1000, 1000, chosen=True)
JPEG_LOSSLESS, DEFLATED = "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.1.99"


def scaled(values: NDArray[Any], low: float, high: float) -> NDArray[Any]:
    return np.clip(np.rint((values.astype(float) - low) / (high - low) * 255), 0, 255)


def as_ycc(colour: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(colour).convert("YCbCr"))


KINDS: dict[str, tuple[bytes, ValueRange | None, Any]] = {
    "12 bits": (dicom(TWELVE, BitsStored=12, HighBit=11), None, scaled(TWELVE, 0, 4095)),
    "12 bits of 16": (dicom(TWELVE), None, scaled(TWELVE, 0, 4095)),
    "all 16 bits": (dicom(TWELVE), FULL_RANGE, scaled(TWELVE, 0, 65535)),
    "zero is white": (dicom(TWELVE, "MONOCHROME1"), None, 255 - scaled(TWELVE, 0, 4095)),
    "8 bits": (dicom(BYTES), None, BYTES),
    "8 bits, zero is white": (dicom(BYTES, "MONOCHROME1"), None, 255 - BYTES),
    "8 bits rescaled": (dicom(BYTES, RescaleSlope="2", RescaleIntercept="1"), None, scaled(BYTES * 2.0 + 1, 0, 511)),
    "Hounsfield units": (dicom(TWELVE, **CT), UNITS, scaled(TWELVE - 1024.0, -1000, 1000)),
    "signed": (dicom(TWELVE.astype(np.int16) - 2000), UNITS, scaled(TWELVE - 2000.0, -1000, 1000)),
    "fractions": (
        dicom(TWELVE, RescaleSlope="0.25", RescaleIntercept="0"),
        ValueRange(0, 1000, chosen=True),
        scaled(TWELVE * 0.25, 0, 1000),
    ),
    "run lengths": (dicom(TWELVE, compress=True), None, scaled(TWELVE, 0, 4095)),
    "a window, not applied": (dicom(TWELVE, WindowCenter="100", WindowWidth="50"), None, scaled(TWELVE, 0, 4095)),
}


def pixels_of(path: Path, value_range: ValueRange | None = None, channels: int = 1) -> Any:
    shown = value_range or find_value_range([path])
    images, _ = decode_files([path], 2, channels, skip_bad_images=False, value_range=shown)
    return images[0]


@pytest.mark.parametrize("kind", KINDS)
def test_grey_is_rescaled_and_shown_in_its_range(kind: str, tmp_path: Path) -> None:
    data, value_range, expected = KINDS[kind]
    found = pixels_of(written(tmp_path, "scan.dcm", data), value_range)
    assert found[..., 0].tolist() == np.asarray(expected).astype(int).tolist()


def test_colour_becomes_rgb(tmp_path: Path) -> None:
    assert (pixels_of(written(tmp_path, "a", dicom(COLOUR, "RGB")), channels=3) == COLOUR).all()
    converted = pixels_of(written(tmp_path, "b", dicom(as_ycc(COLOUR), "YBR_FULL")), channels=3)
    assert np.abs(converted.astype(int) - COLOUR).max() <= 2
    jpeg = in_format(Image.fromarray(np.full((16, 16), 77, np.uint8)), "JPEG", quality=100)
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGBaseline8Bit

    wrapped = dicom(np.zeros((16, 16), np.uint8), PixelData=encapsulate([jpeg]), TransferSyntaxUID=JPEGBaseline8Bit)
    assert (pixels_of(written(tmp_path, "c", wrapped)) == 77).all()


REFUSED = {
    "negative": (dicom(TWELVE, **CT), "negative pixel values: set value-range=low,high"),
    "fractions": (dicom(TWELVE, RescaleSlope="0.3", RescaleIntercept="0"), "floating-point pixels: set value-range"),
    "frames": (dicom(np.concatenate([TWELVE] * 3), NumberOfFrames=3, Rows=2), "3 frames: save each as a file, or set"),
    "no decoder": (
        dicom(TWELVE, TransferSyntaxUID=JPEG_LOSSLESS, PixelData=b"\xfe\xff\0\xe0\0\0\0\0" * 2),
        "DICOM compressed as JPEG Lossless, .*without a decoder here: write it uncompressed, such as",
    ),
    "unknown syntax": (
        dicom(TWELVE).replace(b"1.2.840.10008.1.2.1\0", b"1.2.3.4.5.6.7.8.9.1\0"),
        "unknown transfer syntax: write it uncompressed",
    ),
    "deflated": (dicom(TWELVE, TransferSyntaxUID=DEFLATED), "packed with deflate, which is not read: write it"),
    "palette": (dicom(BYTES, "PALETTE COLOR"), "photometric interpretation is none of MONOCHROME1, MONOCHROME2, RGB"),
    "pixels cut": (dicom(TWELVE)[:-4], "whose pixels cannot be decoded: it is damaged"),
    "header cut": (dicom(TWELVE)[:300], "cannot be parsed: it is damaged|without an image"),
    "no image": (dicom(TWELVE, Rows=None), "without an image: it lacks rows"),
    "patient as size": (dicom(TWELVE, NumberOfFrames="77777777").replace(b"77777777", b"SECRET^1"), "without an image"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_read_is_named_without_the_patient(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    data, said = REFUSED[kind]
    path = written(tmp_path, "scan.dcm", data)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with pytest.raises(UserError, match=said) as caught:
            pixels_of(path)
    everything = [str(caught.value), caplog.text, *capfd.readouterr(), *(str(each.message) for each in warned)]
    assert "SECRET" not in " ".join(everything)
    chain: BaseException | None = caught.value
    while chain is not None:
        assert "SECRET" not in str(chain)
        chain = chain.__cause__


def test_the_first_frame_is_taken_when_asked(tmp_path: Path) -> None:
    path = written(tmp_path, "scan.dcm", dicom(np.concatenate([TWELVE, TWELVE // 2]), NumberOfFrames=2, Rows=2))
    picture = read_picture(path, 2, True)
    assert isinstance(picture, DeepPixels)
    assert (picture.values == TWELVE).all()


def test_a_folder_of_scans_is_a_dataset(tmp_path: Path) -> None:
    written(tmp_path, "ill/0.dcm", dicom(TWELVE))
    written(tmp_path, "well/0.DCM", dicom(TWELVE // 2))
    data = read_image_folder(tmp_path)
    assert data.images.shape == (2, 2, 2, 1)
    assert data.images[..., 0].tolist() == [scaled(TWELVE, 0, 4095).tolist(), scaled(TWELVE // 2, 0, 4095).tolist()]


def test_without_the_package_the_fix_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, "scan.dcm", dicom(TWELVE))
    monkeypatch.setattr("fedsynth.data.dicom.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(UserError, match=r"scan\.dcm \(DICOM, .*: pip install 'fedsynth\[dicom\]'\)"):
        pixels_of(path)
