from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_examples import in_format, png, tiff, written
from numpy.typing import NDArray
from PIL import Image

from fedsynth.data.pixels import conform, decode_files, to_pixels
from fedsynth.data.value_range import FULL_RANGE, ValueRange
from fedsynth.errors import FilesError, UserError

GREY = np.array([[0, 10], [200, 255]], np.uint8)
COLOUR = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [200, 100, 50]]], np.uint8)
TWELVE = np.array([[0, 1000], [2048, 4095]], np.uint16)
SIXTEEN = np.array([[0, 257], [32896, 65535]], np.uint16)
HOUNSFIELD = np.array([[-1000, 0], [500, 1000]], np.int16)
ALPHA = np.array([[255, 0], [51, 255]], np.uint8)
"""Of 51, a fifth."""
LUMA = np.rint(COLOUR @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)


def on_white(pixels: NDArray[Any], alpha: NDArray[np.uint8]) -> NDArray[Any]:
    share = alpha[..., np.newaxis] / 255
    return np.rint(pixels * share + 255 * (1 - share))


def scaled(values: NDArray[Any], low: float, high: float) -> NDArray[Any]:
    return np.clip(np.rint((values.astype(float) - low) / (high - low) * 255), 0, 255)


def rgb(grey: NDArray[Any]) -> NDArray[Any]:
    return np.stack([grey] * 3, axis=-1)


def palette(transparent: int | None = None) -> bytes:
    image = Image.new("P", (2, 2))
    image.putpalette([0, 0, 255, 10, 20, 30])
    image.putdata([0, 1, 0, 1])
    return in_format(image, "PNG", **({} if transparent is None else {"transparency": transparent}))


def sixteen_with(alpha: NDArray[np.uint8], pixels: NDArray[np.uint16]) -> NDArray[np.uint16]:
    values = pixels if pixels.ndim == 3 else pixels[..., np.newaxis]
    return np.concatenate([values, alpha[..., np.newaxis].astype(np.uint16) * 257], axis=-1)


WIDE = ValueRange(-1000, 1000, chosen=True)
TWELVE_BITS = ValueRange(0, 4095)
BLUE, DARK, WHITE = [0, 0, 255], [10, 20, 30], [255, 255, 255]
CYAN = np.array([[[0, 0, 0, 51], [255, 0, 0, 51]], [[0, 255, 0, 0], [0, 0, 255, 0]]], np.uint8)

KINDS: dict[str, tuple[bytes, ValueRange, Any]] = {
    "1 bit": (in_format(Image.fromarray(GREY > 100), "PNG"), FULL_RANGE, rgb(GREY > 100) * 255),
    "grey": (png(GREY), FULL_RANGE, rgb(GREY)),
    "grey and alpha": (png(np.stack([GREY, ALPHA], -1)), FULL_RANGE, on_white(rgb(GREY), ALPHA)),
    "colour": (png(COLOUR), FULL_RANGE, COLOUR),
    "colour and alpha": (png(np.dstack([COLOUR, ALPHA])), FULL_RANGE, on_white(COLOUR, ALPHA)),
    "palette": (palette(), FULL_RANGE, [[BLUE, DARK]] * 2),
    "palette with a transparent colour": (palette(transparent=1), FULL_RANGE, [[BLUE, WHITE]] * 2),
    "16-bit grey PNG": (png(SIXTEEN), FULL_RANGE, rgb(SIXTEEN / 257)),
    "16-bit grey PNG of 12 bits": (png(TWELVE), TWELVE_BITS, rgb(scaled(TWELVE, 0, 4095))),
    "16-bit grey and alpha": (
        png(sixteen_with(ALPHA, TWELVE)),
        TWELVE_BITS,
        on_white(rgb(scaled(TWELVE, 0, 4095)), ALPHA),
    ),
    "16-bit colour PNG": (png(rgb(SIXTEEN)), FULL_RANGE, rgb(SIXTEEN / 257)),
    "16-bit colour PNG of 12 bits": (png(rgb(TWELVE)), TWELVE_BITS, rgb(scaled(TWELVE, 0, 4095))),
    "16-bit colour and alpha": (
        png(sixteen_with(ALPHA, rgb(TWELVE))),
        TWELVE_BITS,
        on_white(rgb(scaled(TWELVE, 0, 4095)), ALPHA),
    ),
    "16-bit colour TIFF": (tiff(rgb(TWELVE).astype("<u2"), 2), TWELVE_BITS, rgb(scaled(TWELVE, 0, 4095))),
    "16-bit colour TIFF, big-endian": (tiff(rgb(TWELVE).astype(">u2"), 2), TWELVE_BITS, rgb(scaled(TWELVE, 0, 4095))),
    "16-bit colour TIFF and an unused channel": (
        tiff(sixteen_with(ALPHA, rgb(TWELVE)), 2, {338: 0}),
        TWELVE_BITS,
        rgb(scaled(TWELVE, 0, 4095)),
    ),
    "16-bit colour TIFF, deflated": (
        tiff(rgb(TWELVE).astype("<u2"), 2, deflated=True),
        TWELVE_BITS,
        rgb(scaled(TWELVE, 0, 4095)),
    ),
    "16-bit colour TIFF, big-endian and deflated": (
        tiff(rgb(TWELVE).astype(">u2"), 2, deflated=True),
        TWELVE_BITS,
        rgb(scaled(TWELVE, 0, 4095)),
    ),
    "16-bit TIFF": (tiff(SIXTEEN), FULL_RANGE, rgb(SIXTEEN / 257)),
    "16-bit TIFF, big-endian": (tiff(SIXTEEN.astype(">u2")), FULL_RANGE, rgb(SIXTEEN / 257)),
    "16-bit TIFF, deflated": (
        in_format(Image.fromarray(TWELVE), "TIFF", compression="tiff_deflate"),
        TWELVE_BITS,
        rgb(scaled(TWELVE, 0, 4095)),
    ),
    "16-bit TIFF whose zero is white": (tiff(TWELVE, 0), TWELVE_BITS, rgb(255 - scaled(TWELVE, 0, 4095))),
    "8-bit TIFF whose zero is white": (tiff(GREY, 0), FULL_RANGE, rgb(255 - GREY)),
    "signed 16-bit TIFF": (tiff(HOUNSFIELD), WIDE, rgb(scaled(HOUNSFIELD, -1000, 1000))),
    "32-bit TIFF": (tiff(SIXTEEN.astype(np.int32)), FULL_RANGE, rgb(SIXTEEN / 257)),
    "floating-point TIFF": (tiff(HOUNSFIELD.astype(np.float32)), WIDE, rgb(scaled(HOUNSFIELD, -1000, 1000))),
    "values beyond a chosen range": (tiff(HOUNSFIELD * 2), WIDE, rgb(scaled(HOUNSFIELD * 2, -1000, 1000))),
    "16-bit PGM": (b"P5 2 2 65535\n" + SIXTEEN.astype(">u2").tobytes(), FULL_RANGE, rgb(SIXTEEN / 257)),
    "12-bit PGM": (b"P5 2 2 4095\n" + TWELVE.astype(">u2").tobytes(), FULL_RANGE, rgb(scaled(TWELVE, 0, 4095))),
    "CMYK TIFF": (tiff(CYAN, 5), FULL_RANGE, scaled((255 - CYAN[..., :3]) * ((255 - CYAN[..., 3:]) / 255), 0, 255)),
    "bitmap": (in_format(Image.fromarray(COLOUR), "BMP"), FULL_RANGE, COLOUR),
    "GIF": (in_format(Image.fromarray(COLOUR), "GIF"), FULL_RANGE, COLOUR),
    "WebP": (in_format(Image.fromarray(COLOUR), "WEBP", lossless=True), FULL_RANGE, COLOUR),
    "JPEG 2000": (in_format(Image.fromarray(COLOUR), "JPEG2000"), FULL_RANGE, COLOUR),
    "12-bit JPEG 2000": (in_format(Image.fromarray(TWELVE), "JPEG2000"), TWELVE_BITS, rgb(scaled(TWELVE, 0, 4095))),
}


def pixels_of(folder: Path, data: bytes, channels: int = 3, value_range: ValueRange = FULL_RANGE) -> Any:
    """What becomes of a file of 2 x 2 pixels; its name says nothing of its kind."""
    path = written(folder, "file.png", data)
    images, _ = decode_files([path], 2, channels, skip_bad_images=False, value_range=value_range)
    return images[0]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image_becomes_pixels(kind: str, tmp_path: Path) -> None:
    data, value_range, expected = KINDS[kind]
    assert pixels_of(tmp_path, data, 3, value_range).tolist() == np.asarray(expected).astype(int).tolist()


def test_grey_is_kept_and_colour_becomes_its_luma(tmp_path: Path) -> None:
    assert (pixels_of(tmp_path, png(GREY), 1)[..., 0] == GREY).all()
    assert (pixels_of(tmp_path, png(COLOUR), 1)[..., 0] == LUMA).all()
    assert (pixels_of(tmp_path, png(rgb(SIXTEEN)), 1)[..., 0] == SIXTEEN // 257).all()


@pytest.mark.parametrize("kind", ["JPEG", "AVIF"])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_lossy_kinds_keep_even_colours(kind: str, mode: str, tmp_path: Path) -> None:
    even = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    image = Image.fromarray(even).convert(mode)
    if (kind, mode) == ("AVIF", "CMYK"):
        return
    path = written(tmp_path, "x", in_format(image, kind, quality=100))
    images, _ = decode_files([path], 16, 3, skip_bad_images=False)
    assert np.abs(images[0].astype(int) - np.asarray(image.convert("RGB"))).max() <= 2


def test_the_centre_of_a_wide_image_is_taken() -> None:
    wide = np.array([[0, 200, 200, 0]] * 2, np.uint8)
    assert to_pixels(Image.fromarray(wide), 2, 1).tolist() == [[[200]] * 2] * 2


def test_resizing_averages_instead_of_picking() -> None:
    checkers = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    assert np.abs(to_pixels(Image.fromarray(checkers), 8, 1).astype(int) - 127.5).max() <= 2


NAN = np.array([[0.0, np.nan]] * 2, np.float32)
REFUSED: dict[str, tuple[bytes, str]] = {
    "negative": (tiff(HOUNSFIELD), r"negative pixel values: set value-range=low,high"),
    "float": (tiff(HOUNSFIELD.astype(np.float32)), r"floating-point pixels: set value-range=low,high"),
    "beyond 16 bits": (tiff(np.full((2, 2), 70000, np.int32)), "beyond 16 bits: set value-range"),
    "not a number": (tiff(NAN), r"no numbers \(NaN or infinity\)"),
    "64-bit float": (tiff(NAN.astype(np.float64)), "a kind of TIFF that is not read, or damaged: save it as grey"),
    "16-bit CMYK": (tiff(sixteen_with(ALPHA, rgb(TWELVE)), 5), "more than 8 bits per channel in a layout that is not"),
    "16-bit planes": (
        tiff(np.zeros((2, 2, 3), np.uint16), 2, {284: 2}),
        "more than 8 bits per channel in a layout|TIFF",
    ),
    "two channels": (tiff(np.stack([GREY, GREY], -1)), "a kind of TIFF that is not read"),
    "transparent everywhere": (png(np.dstack([COLOUR, 0 * ALPHA])), r"every pixel is transparent \(alpha 0\): save"),
    "transparent palette": (in_format(Image.new("P", (2, 2)), "PNG", transparency=0), "every pixel is transparent"),
    "empty": (b"", "an empty file"),
    "text": (b"not a picture", "not an image"),
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC, which is not read: export it as JPEG or PNG"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n", "not an image"),
    "truncated": (png(np.zeros((300, 300), np.uint8) + np.arange(300, dtype=np.uint8))[:200], "truncated|broken"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_read_is_refused_with_the_fix(kind: str, tmp_path: Path) -> None:
    data, said = REFUSED[kind]
    with pytest.raises(UserError, match=rf"1 of 1 images cannot be read: .*file\.png \(.*(?:{said})"):
        pixels_of(tmp_path, data)
    if kind == "not a number":
        with pytest.raises(UserError, match=said):
            pixels_of(tmp_path, data, value_range=WIDE)


@pytest.mark.parametrize(("feature", "kind", "name"), [("avif", "AVIF", "AVIF"), ("jpg_2000", "JPEG2000", "JPEG 2000")])
def test_a_pillow_without_a_decoder_is_named(
    feature: str, kind: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = in_format(Image.fromarray(COLOUR), kind)
    monkeypatch.setattr("fedsynth.data.image_files.PILLOW_FORMATS", ("PNG",))
    monkeypatch.setattr("PIL.features.check", lambda asked: asked != feature)
    with pytest.raises(UserError, match=f"{name}, which this installation of Pillow cannot read: pip install"):
        pixels_of(tmp_path, data)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UserError, match=r"pipe\.png \(not a regular file\)"):
        decode_files([tmp_path / "pipe.png"], 2, 3, skip_bad_images=False)


def test_conform_leaves_fitting_images_and_converts_others() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 1), dtype=np.uint8)
    assert conform(images, 4, 1) is images
    assert (conform(images, 4, 3) == images).all()
    assert conform(images, 2, 3).shape == (3, 2, 2, 3)


def write_files(folder: Path, good: int, bad: int) -> list[Path]:
    for number in range(good):
        Image.new("L", (4, 4), number).save(folder / f"good{number}.png")
    for number in range(bad):
        (folder / f"bad{number:02d}.png").write_bytes(b"not a picture")
    return sorted(folder.iterdir())


def test_bad_files_are_named_up_to_ten(tmp_path: Path) -> None:
    paths = write_files(tmp_path, good=2, bad=13)
    with pytest.raises(
        UserError, match=r"13 of 15 images .*bad00\.png.*bad09\.png.* and 3 more.*skip-bad-images"
    ) as caught:
        decode_files(paths, 4, 1, skip_bad_images=False)
    assert "bad10.png" not in str(caught.value)
    assert isinstance(caught.value, FilesError)
    assert caught.value.elsewhere.startswith("13 images cannot be read: the silo's log says which")


def test_bad_files_are_skipped_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = write_files(tmp_path, good=2, bad=1)
    with caplog.at_level(logging.WARNING, logger="fedsynth"):
        images, good = decode_files(paths, 4, 1, skip_bad_images=True)
    assert images[:, 0, 0, 0].tolist() == [0, 1]
    assert good.tolist() == [False, True, True]
    assert "bad00.png" in caplog.text


def test_truncated_files_are_found(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for name in ("cut.png", "cut.jpg"):
        path = tmp_path / name
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[:2000])
        with pytest.raises(UserError, match=name):
            decode_files([path], 32, 3, skip_bad_images=False)


def test_a_jpeg_of_ycck_is_converted_twice(tmp_path: Path) -> None:
    stored = np.array([120, 100, 160, 204])
    even = np.broadcast_to((255 - stored).astype(np.uint8), (16, 16, 4))
    data = in_format(Image.frombytes("CMYK", (16, 16), even.tobytes()), "JPEG", quality=100)
    place = data.index(b"Adobe") + 11
    assert data[place] == 0, "CMYK as it is"
    path = written(tmp_path, "x.jpg", data[:place] + b"\2" + data[place + 1 :])
    luma, blue, red = stored[:3] - np.array([0, 128, 128])
    ink = np.array([luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue])
    expected = (255 - ink) * (stored[3] / 255)
    images, _ = decode_files([path], 16, 3, skip_bad_images=False)
    assert np.abs(images[0] - expected).max() <= 3
