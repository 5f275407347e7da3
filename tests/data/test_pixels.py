from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedsynth.data.pixels import conform, decode_files, to_pixels
from fedsynth.errors import UserError


def stored(image: Image.Image, kind: str = "png", **options: object) -> Image.Image:
    """Return the image as it comes back from a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return Image.open(buffer)


def filled(mode: str, values: list[Any]) -> Image.Image:
    """An image of 2x2 pixels, row by row; in a palette of blue and grey."""
    image = Image.new(mode, (2, 2))
    if mode == "P":
        image.putpalette([0, 0, 255, 10, 20, 30])
    image.putdata(values)
    return image


TURNED = Image.Exif()
TURNED[0x0112] = 6  # to be turned by 90 degrees clockwise
BLUE, GREY, RED, WHITE = [0, 0, 255], [10, 20, 30], [255, 0, 0], [255, 255, 255]
LUMA = round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (stored(Image.fromarray(np.array([[0, 257], [32896, 65535]], np.uint16))), [[[0], [1]], [[128], [255]]]),
        (Image.open(io.BytesIO(b"P5 2 2 65535\n" + b"\0\0\xff\xff" * 2)), [[[0], [255]]] * 2),
        (stored(filled("RGBA", [(255, 0, 0, 255), (0, 0, 0, 0)] * 2)), [[RED, WHITE]] * 2),
        (stored(filled("P", [0, 1] * 2)), [[BLUE, GREY]] * 2),
        (stored(filled("P", [0, 1] * 2), transparency=1), [[BLUE, WHITE]] * 2),
        (stored(filled("L", [7] * 4)), [[[7, 7, 7]] * 2] * 2),
        (filled("RGB", [(200, 100, 50)] * 4), [[[LUMA]] * 2] * 2),
        (Image.fromarray(np.array([[0, 200, 200, 0]] * 2, np.uint8)), [[[200]] * 2] * 2),
        (stored(filled("L", [0, 255] * 2), exif=TURNED), [[[0]] * 2, [[255]] * 2]),
    ],
    ids=[
        *("16-bit PNG", "16-bit PGM", "transparency on white", "palette", "transparent palette", "grey to colour"),
        *("colour to grey", "cropped to its centre", "turned by EXIF"),
    ],
)
def test_every_kind_of_image_becomes_pixels(image: Image.Image, expected: list[Any]) -> None:
    assert to_pixels(image, 2, len(expected[0][0])).tolist() == expected


def test_resizing_averages_instead_of_picking() -> None:
    checkers = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    assert np.abs(to_pixels(Image.fromarray(checkers), 8, 1).astype(int) - 127.5).max() <= 2


def test_unknown_ranges_are_refused() -> None:
    with pytest.raises(ValueError, match="floating-point"):
        to_pixels(Image.fromarray(np.ones((2, 2), np.float32)), 2, 1)
    with pytest.raises(ValueError, match="beyond 16 bits"):
        to_pixels(Image.fromarray(np.full((2, 2), 70000, np.int32)), 2, 1)


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
