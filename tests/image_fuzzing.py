"""Tiny image files of every kind with seeded damage, read in a process of its own.

A decoder in C that crashes ends that process and not the tests; its memory and processor time are limited.
``python -m image_fuzzing MUTATIONS SEED FOLDER`` is that process.
"""

from __future__ import annotations

import json
import logging
import os
import random
import resource
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
from image_examples import dicom, exif, in_format, png, tiff
from PIL import Image

from fedsynth.data import image_files
from fedsynth.data.image_files import read_header
from fedsynth.data.pixels import decode_files, find_value_range
from fedsynth.data.value_range import FULL_RANGE, ValueRange
from fedsynth.errors import UserError

EXTREMES = (0, 1, 2, 7, 8, 16, 32, 255, 256, 9_999, 2**15 - 1, 2**15, 2**16 - 1, 10**5, 2**31 - 1, 2**31, 2**32 - 1)
MOST_BYTES = 2 * 2**30
"""What fedsynth/data/image_files.py says that the largest image takes."""
MOST_ADDRESSES = 6 * 2**30
"""Pillow asks for as many bytes as a chunk claims to have, up to 4 GiB, which then nobody touches."""
SECONDS_PER_MUTATION = 0.5
LONGEST_REASON = 300


def examples() -> dict[str, bytes]:
    """Files of 8 x 8 pixels, or a little more."""
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    deep = rng.integers(0, 4096, (8, 8), dtype=np.uint16)
    image, other = Image.fromarray(colour), Image.fromarray(255 - colour)
    clear = Image.fromarray(rng.integers(0, 256, (8, 8, 4), dtype=np.uint8))

    def several(kind: str) -> bytes:
        return in_format(image, kind, save_all=True, append_images=[other.copy()])

    text = [(b"iCCP", b"p\0\0" + zlib.compress(b"A" * 2_000_000)), (b"zTXt", b"c\0\0" + zlib.compress(b"A" * 99))]
    return {
        "jpeg": in_format(image, "JPEG", exif=exif(6)),
        "progressive jpeg": in_format(image, "JPEG", progressive=True),
        "cmyk jpeg": in_format(image.convert("CMYK"), "JPEG"),
        "mpo": several("MPO"),
        "png": in_format(image, "PNG", exif=exif(5)),
        "palette png": in_format(image.convert("P"), "PNG", transparency=3),
        "deep png": png(deep),
        "deep colour png": png(np.stack([deep] * 4, axis=-1)),
        "png with a profile": png(colour, *text),
        "animated png": several("PNG"),
        "bmp": in_format(image, "BMP"),
        "ppm": in_format(image, "PPM"),
        "deep pgm": b"P5 8 8 4095\n" + deep.astype(">u2").tobytes(),
        "plain pgm": b"P2\n2 2\n255\n0 1 2 3\n",
        "tiff": in_format(image, "TIFF"),
        "tiff lzw": in_format(image, "TIFF", compression="tiff_lzw"),
        "tiff jpeg": in_format(image, "TIFF", compression="jpeg"),
        "tiff group4": in_format(image.convert("1"), "TIFF", compression="group4"),
        "deep tiff": in_format(Image.fromarray(deep), "TIFF", compression="tiff_deflate"),
        "deep colour tiff": tiff(np.stack([deep] * 3, axis=-1), 2),
        "float tiff": tiff(deep.astype(np.float32)),
        "pages": several("TIFF"),
        "webp": in_format(image, "WEBP", exif=exif(3)),
        "lossless webp": in_format(clear, "WEBP", lossless=True),
        "animated webp": several("WEBP"),
        "gif": in_format(image, "GIF"),
        "animated gif": several("GIF"),
        "jpeg 2000": in_format(image, "JPEG2000"),
        "codestream": in_format(image, "JPEG2000", no_jp2=True),
        "avif": in_format(image, "AVIF", exif=exif(8)),
        "dicom": dicom(deep, RescaleSlope="1", RescaleIntercept="-5"),
        "colour dicom": dicom(colour, "YBR_FULL"),
        "packed dicom": dicom(deep, compress=True),
        "frames": dicom(np.concatenate([deep, deep]), NumberOfFrames=2, Rows=8),
    }


def damaged(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """Bytes with one kind of damage, mostly where headers stand."""
    place = rng.randrange(min(len(data), rng.choice((32, 128, 10**6)))) if data else 0
    match rng.randrange(7):
        case 0:
            return data[:place]
        case 1:
            return data[:place] + rng.randbytes(rng.randint(1, 9)) + data[place:]
        case 2:
            return data[:place] + data[place + rng.randint(1, 9) :]
        case 3:
            return data[:place] + rng.choice(others)[place:]
        case 4 | 5:
            order, kind = rng.choice("<>"), rng.choice("HI")
            value = rng.choice(EXTREMES) & (0xFFFF if kind == "H" else 0xFFFFFFFF)
            field = struct.pack(order + kind, value)
            return data[:place] + field + data[place + len(field) :]
    flipped = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        if flipped:
            flipped[min(len(flipped) - 1, place + rng.randrange(8))] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def with_checksums(data: bytes) -> bytes:
    """A PNG whose checksums are right, so that damage reaches what stands behind them."""
    parts, place = [data[:8]], 8
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        if place + 12 + length > len(data):
            break
        body = data[place + 4 : place + 8 + length]
        parts.append(data[place : place + 4] + body + struct.pack(">I", zlib.crc32(body)))
        place += 12 + length
    return b"".join(parts) + data[place:]


def main(mutations: int, seed: int, folder: Path) -> None:
    """Read mutations, and print as JSON how many were read and refused; all else ends with a traceback."""
    with open("/proc/self/status", encoding="utf-8") as status:
        used = 1024 * int(next(line for line in status if line.startswith("VmSize")).split()[1])
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_ADDRESSES, resource.RLIM_INFINITY))
    seconds = int(resource.getrusage(resource.RUSAGE_SELF).ru_utime + 30 + SECONDS_PER_MUTATION * mutations)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
    logging.disable()
    files = examples()
    rng = random.Random(f"images {seed}")
    path = folder / "file"
    outcome = {"read": 0, "refused": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(mutations):
            name = rng.choice(list(files))
            data = files[name]
            for _ in range(rng.choice((1, 1, 2, 3))):
                data = damaged(rng, data, list(files.values()))
            if data.startswith(b"\x89PNG") and rng.random() < 0.8:
                data = with_checksums(data)
            path.write_bytes(data)
            try:
                outcome["read" if is_read(path, rng) else "refused"] += 1
            except BaseException as error:
                raise AssertionError(f"{name}, mutation {number} of seed {seed}: {error!r:.300}") from error
    assert 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < MOST_BYTES
    print(json.dumps(outcome))


def is_read(path: Path, rng: random.Random) -> bool:
    """Read one file in every way; say whether there was an image."""
    first_page_only = rng.random() < 0.5
    side = rng.choice((1, 8))
    image_files.LARGE_PIXELS = rng.choice((30, 2**24))
    header = read_header(path)
    found = find_value_range([path], first_page_only=first_page_only)
    chosen = rng.choice((found, FULL_RANGE, ValueRange(-100, 1000, chosen=True)))
    try:
        images, good = decode_files(
            [path], side, 3, skip_bad_images=False, value_range=chosen, first_page_only=first_page_only
        )
    except UserError as error:
        reason = str(error).replace(str(path), "")
        assert len(reason) < LONGEST_REASON + 100, reason
        assert reason.isprintable(), reason
        assert "SECRET" not in reason
        assert "not enough memory" not in reason
        return False
    assert header is not None
    assert images.shape == (1, side, side, 3)
    assert good.all()
    return True


def fuzzed(mutations: int, seed: int, folder: Path) -> dict[str, int]:
    """Run :func:`main` in a process of its own, and return what it prints.

    Raises:
        AssertionError: it crashed, raised something else than UserError, or took more memory or time than it may.
    """
    root = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": f"{root}:{root / 'tests'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "image_fuzzing", str(mutations), str(seed), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, f"status {done.returncode}: {done.stderr[-3000:]}"
    outcome: dict[str, int] = json.loads(done.stdout)
    return outcome


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
