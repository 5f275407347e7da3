from __future__ import annotations

import io
import logging
from pathlib import Path

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


def test_sixteen_bit_grey_of_png_and_pgm_keeps_its_range() -> None:
    values = np.array([[0, 257], [32896, 65535]], np.uint16)
    assert to_pixels(stored(Image.fromarray(values)), 2, 1)[..., 0].tolist() == [[0, 1], [128, 255]]
    image = Image.open(io.BytesIO(b"P5 2 1 65535\n\x00\x00\xff\xff"))
    assert np.asarray(to_pixels(image.resize((2, 2), Image.Resampling.NEAREST), 2, 1))[0, :, 0].tolist() == [0, 255]


def test_transparency_lies_on_white() -> None:
    image = Image.new("RGBA", (2, 1))
    image.putdata([(255, 0, 0, 255), (0, 0, 0, 0)])
    image = image.resize((2, 2), Image.Resampling.NEAREST)
    assert to_pixels(stored(image), 2, 3)[0].tolist() == [[255, 0, 0], [255, 255, 255]]


def test_palette_gives_its_colours_and_transparency() -> None:
    image = Image.new("P", (2, 2))
    image.putpalette([0, 0, 255, 10, 20, 30])
    image.putdata([0, 1, 0, 1])
    assert to_pixels(stored(image), 2, 3)[0].tolist() == [[0, 0, 255], [10, 20, 30]]
    assert to_pixels(stored(image, transparency=1), 2, 3)[0].tolist() == [[0, 0, 255], [255, 255, 255]]


def test_grey_and_colour_convert_into_each_other() -> None:
    assert to_pixels(stored(Image.new("L", (3, 3), 7)), 3, 3).tolist() == np.full((3, 3, 3), 7).tolist()
    luma = round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)
    assert to_pixels(Image.new("RGB", (3, 3), (200, 100, 50)), 3, 1).tolist() == np.full((3, 3, 1), luma).tolist()


def test_non_square_is_cropped_to_its_centre() -> None:
    pixels = np.zeros((4, 8), np.uint8)
    pixels[:, 2:6] = 200
    assert to_pixels(Image.fromarray(pixels), 4, 1)[..., 0].tolist() == np.full((4, 4), 200).tolist()


def test_resizing_averages_instead_of_picking() -> None:
    checkers = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    assert np.abs(to_pixels(Image.fromarray(checkers), 8, 1).astype(int) - 127.5).max() <= 2


def test_exif_orientation_is_applied() -> None:
    image = Image.fromarray(np.array([[0, 255], [0, 255]], np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    assert to_pixels(stored(image, exif=exif), 2, 1)[..., 0].tolist() == [[0, 0], [255, 255]]


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
