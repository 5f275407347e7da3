"""What stands around the pixels of a file: pages, orientation, text, sizes."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from image_examples import dicom, exif, in_format, png, tiff, written
from image_fuzzing import fuzzed
from PIL import Image, ImageOps

from fedsynth.data import image_files
from fedsynth.data.image_files import MAX_PIXELS, read_header, read_picture

ROOT = Path(__file__).parents[2]
SHADES = [Image.new("RGB", (8, 8), (value, value, value)) for value in (10, 200, 90)]
CORNERS = np.array([[0, 80, 160], [240, 40, 120]], np.uint8).repeat(8, axis=0).repeat(8, axis=1)
"""Six shades that no turn leaves in place, in blocks of a JPEG's size."""


def refusal(path: Path, first_page_only: bool = False) -> str:
    with pytest.raises(ValueError, match=r"\w") as caught:
        read_picture(path, 8, first_page_only)
    return str(caught.value)


def picture(path: Path, side: int | None = None, first_page_only: bool = False) -> Image.Image:
    read = read_picture(path, side, first_page_only)
    assert isinstance(read, Image.Image)
    return read


class TestPages:
    @pytest.mark.parametrize("kind", ["TIFF", "GIF", "WEBP", "PNG", "AVIF"])
    def test_are_counted_and_the_first_is_taken_when_asked(self, kind: str, tmp_path: Path) -> None:
        path = written(tmp_path, "x", in_format(SHADES[0], kind, save_all=True, append_images=SHADES[1:]))
        assert refusal(path) == "3 pages: save each as a file, or set first-page-only=true to take the first"
        first = np.asarray(picture(path, first_page_only=True).convert("L")).astype(int)
        assert np.abs(first - 10).max() <= 2

    def test_a_single_page_is_read_in_every_format(self, tmp_path: Path) -> None:
        for kind in ("TIFF", "GIF", "WEBP", "PNG", "AVIF"):
            assert picture(written(tmp_path, "x", in_format(SHADES[0], kind))).size == (8, 8)

    def test_a_photos_preview_and_a_tiffs_thumbnail_are_none(self, tmp_path: Path) -> None:
        photo = written(tmp_path, "x.jpg", in_format(SHADES[0], "MPO", save_all=True, append_images=[SHADES[1]]))
        assert Image.open(photo).n_frames == 2  # type: ignore[attr-defined]
        assert picture(photo).getpixel((4, 4)) == (10, 10, 10)
        small = SHADES[1].copy()
        small.encoderinfo = {"tiffinfo": {254: 1}}  # type: ignore[attr-defined]
        thumbnail = written(tmp_path, "x.tif", in_format(SHADES[0], "TIFF", save_all=True, append_images=[small]))
        assert Image.open(thumbnail).n_frames == 2  # type: ignore[attr-defined]
        assert picture(thumbnail).getpixel((4, 4)) == (10, 10, 10)

    def test_a_chain_that_never_ends_is_counted_to_a_bound(self, tmp_path: Path) -> None:
        page = tiff(np.zeros((2, 2), np.uint8))
        stack = io.BytesIO()
        Image.open(io.BytesIO(page)).save(
            stack, "TIFF", save_all=True, append_images=[Image.open(io.BytesIO(page))] * 120
        )
        assert refusal(written(tmp_path, "x.tif", stack.getvalue())).startswith("more than 100 pages: save each")


class TestOrientation:
    @pytest.mark.parametrize("number", range(1, 9))
    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
    def test_is_applied(self, kind: str, number: int, tmp_path: Path) -> None:
        stored = Image.fromarray(CORNERS)
        if kind == "TIFF":
            data = tiff(CORNERS, tags={0x0112: number})
        else:
            lossless = {"lossless": True} if kind == "WEBP" else {}
            data = in_format(stored, kind, exif=exif(number), **lossless)
        tagged = Image.Exif()
        tagged[0x0112] = number
        expected = ImageOps.exif_transpose(reopened(stored, tagged))
        read = picture(written(tmp_path, "x", data)).convert("L")
        assert read.size == expected.size
        assert np.abs(np.asarray(read).astype(int) - np.asarray(expected)).max() <= 3

    @pytest.mark.parametrize("order", ["<", ">"])
    @pytest.mark.parametrize(
        "broken",
        [
            (0x010F, 2, 5, 2**31),  # the maker's name lies beyond the block
            (0x010F, 2, 2**31, 8),  # it is longer than the block
            (0x0100, 77, 1, 0),  # no such type
            (0x011A, 2, 4, 0x37326200),  # a resolution that is text
            (0x011A, 5, 1, 2**31),
        ],
        ids=["place", "length", "type", "text", "fraction"],
    )
    @pytest.mark.parametrize("kind", ["JPEG", "PNG"])
    def test_is_read_beside_broken_tags(
        self, kind: str, broken: tuple[int, int, int, int], order: str, tmp_path: Path
    ) -> None:
        block = exif(6, before=struct.pack(f"{order}HHII", *broken), order=order)
        data = in_format(Image.fromarray(CORNERS), kind, exif=block)
        assert picture(written(tmp_path, "x", data)).size == (16, 24)

    @pytest.mark.parametrize("block", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", exif(6)[:-20], b"\0" * 40])
    def test_a_broken_block_leaves_the_image_as_it_is(self, block: bytes, tmp_path: Path) -> None:
        data = in_format(Image.fromarray(CORNERS), "JPEG", exif=block)
        assert picture(written(tmp_path, "x", data)).size == (24, 16)


def reopened(image: Image.Image, tags: Image.Exif) -> Image.Image:
    return Image.open(io.BytesIO(in_format(image, "PNG", exif=tags)))


class TestText:
    @pytest.mark.parametrize("size", [100, 2_000_000], ids=["small", "large"])
    def test_of_a_png_and_its_profile_do_not_matter(self, size: int, tmp_path: Path) -> None:
        packed = zlib.compress(b"A" * size)
        chunks = [
            (b"iCCP", b"scanner\0\0" + packed),
            (b"zTXt", b"Comment\0\0" + packed),
            (b"iTXt", b"Comment\0\1\0\0\0" + packed),
            (b"eXIf", exif(6).removeprefix(b"Exif\0\0")),
        ]
        for chosen in (chunks[:1], chunks[1:2], chunks[2:3], chunks):
            read = picture(written(tmp_path, "x.png", png(CORNERS, *chosen)))
            turned = len(chosen) == 4
            assert (np.asarray(read) == (np.rot90(CORNERS, -1) if turned else CORNERS)).all()

    def test_after_the_pixels_does_not_matter_either(self, tmp_path: Path) -> None:
        data = png(CORNERS)
        end = data.rindex(b"IEND") - 4
        late = png(CORNERS, (b"zTXt", b"Comment\0\0" + zlib.compress(b"A" * 2_000_000)))
        place = late.index(b"zTXt") - 4
        chunk = late[place : place + 12 + int.from_bytes(late[place : place + 4], "big")]
        assert (np.asarray(picture(written(tmp_path, "x.png", data[:end] + chunk + data[end:]))) == CORNERS).all()


CLAIMS = {
    "PNG": lambda side: png(np.zeros((2, 2), np.uint8), size=(side, side)),
    "JPEG": lambda side: in_format(SHADES[0], "JPEG").replace(
        b"\x08\0\x08\0\x08\x03", b"\x08" + struct.pack(">HH", side, side) + b"\x03"
    ),
    "GIF": lambda side: (
        in_format(SHADES[0], "GIF")[:6] + struct.pack("<HH", side, side) + in_format(SHADES[0], "GIF")[10:]
    ),
    "PGM": lambda side: f"P5 {side} {side} 255\n".encode(),
    "BMP": lambda side: (
        in_format(SHADES[0], "BMP")[:18] + struct.pack("<II", side, side) + in_format(SHADES[0], "BMP")[26:]
    ),
    "DICOM": lambda side: dicom(np.zeros((2, 2), np.uint8), Rows=side, Columns=side),
    "TIFF": lambda side: tiff(np.zeros((2, 2), np.uint8), tags={256: side, 257: side}),
}


class TestSizes:
    @pytest.mark.parametrize("kind", CLAIMS)
    def test_beyond_the_limit_are_refused_before_decoding(self, kind: str, tmp_path: Path) -> None:
        for side in (10_001, 20_000):
            said = refusal(written(tmp_path, "x", CLAIMS[kind](side)))
            assert said.endswith("more than the 100 megapixels that are safe to decode: scale it down")
        assert MAX_PIXELS == 100_000_000

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
    @pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P"])
    def test_large_images_are_reduced_and_others_are_not(
        self, kind: str, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if kind == "JPEG" and mode in ("RGBA", "P"):
            return
        ramp = np.linspace(0, 255, 256).astype(np.uint8)
        image = Image.fromarray(np.broadcast_to(ramp, (256, 256)).copy()).convert(mode)
        options = {"lossless": True} if kind == "WEBP" else {}
        path = written(tmp_path, "x", in_format(image, kind, **options))
        whole = picture(path, side=8)
        assert whole.size == (256, 256)
        monkeypatch.setattr(image_files, "LARGE_PIXELS", 256 * 256)
        assert picture(path, side=8).size == (256, 256), "at the limit"
        monkeypatch.setattr(image_files, "LARGE_PIXELS", 256 * 256 - 1)
        small = picture(path, side=8)
        assert small.size == (32, 32)
        expected = np.asarray(whole.convert("RGB")).reshape(32, 8, 32, 8, 3).mean((1, 3))
        assert np.abs(np.asarray(small.convert("RGB")) - expected).max() <= 2
        assert picture(path, side=100).size == (256, 256), "no factor keeps four times the side"

    def test_a_large_photo_is_turned_all_the_same(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        wide = CORNERS.repeat(8, axis=0).repeat(8, axis=1)
        monkeypatch.setattr(image_files, "LARGE_PIXELS", 1000)
        path = written(tmp_path, "x", in_format(Image.fromarray(wide), "JPEG", exif=exif(6)))
        assert picture(path, side=8).size == (32, 48)


CHILD = """
import resource, sys
from pathlib import Path
from fedsynth.data.pixels import decode_files
from fedsynth.errors import UserError
used = 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1])
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[1]), -1))
for path in sys.argv[2:]:
    try:
        images, _ = decode_files([Path(path)], 8, 3, skip_bad_images=False)
        print(images.mean())
    except UserError as error:
        print(error)
"""


def test_bombs_and_large_images_stay_within_memory(tmp_path: Path) -> None:
    large = Image.new("RGB", (5_000, 5_000), (30, 30, 30))
    paths = [
        written(tmp_path, "bomb.png", png(np.broadcast_to(np.uint8(1), (11_000, 11_000)))),
        written(tmp_path, "large.jpg", in_format(large, "JPEG")),
        written(tmp_path, "large.png", in_format(large, "PNG", compress_level=1)),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHILD, str(256 * 2**20), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert "bomb.png (11000 x 11000 pixels, more than the 100 megapixels" in said[0]
    assert said[1:] == ["30.0", "30.0"]


def test_headers_are_read_as_the_files_are(tmp_path: Path) -> None:
    twelve = np.zeros((3, 5), np.uint16)
    headers: dict[str, tuple[bytes, bool, bool]] = {
        "grey": (png(twelve.astype(np.uint8)), True, False),
        "colour": (png(np.zeros((3, 5, 3), np.uint8)), False, False),
        "deep": (png(twelve), True, True),
        "deep colour": (png(np.zeros((3, 5, 3), np.uint16)), False, True),
        "float": (tiff(twelve.astype(np.float32)), True, True),
        "deep with a large profile": (
            png(twelve, (b"iCCP", b"scanner\0\0" + zlib.compress(b"A" * 2_000_000))),
            True,
            True,
        ),
        "DICOM": (dicom(twelve), True, True),
        "DICOM of 8 bits": (dicom(twelve.astype(np.uint8)), True, False),
        "DICOM of 8 bits rescaled": (
            dicom(twelve.astype(np.uint8), RescaleSlope="2", RescaleIntercept="0"),
            True,
            True,
        ),
        "DICOM in colour": (dicom(np.zeros((3, 5, 3), np.uint8), "RGB"), False, False),
    }
    for data, grey, deep in headers.values():
        header = read_header(written(tmp_path, "x", data))
        assert header is not None
        assert (header.size, header.grey, header.deep) == ((5, 3), grey, deep)
    assert read_header(written(tmp_path, "x", b"text")) is None
    assert read_header(tmp_path / "absent") is None


def test_damaged_files_of_every_kind_are_read_or_refused(tmp_path: Path) -> None:
    outcome = fuzzed(2_000, seed=0, folder=tmp_path)
    assert outcome["read"] > 200
    assert outcome["refused"] > 200
