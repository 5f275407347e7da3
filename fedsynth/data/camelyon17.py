"""Camelyon17-WILDS (Bandi et al. 2018; Koh et al. 2021, "WILDS"): patches of lymph nodes from five hospitals."""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedsynth.data.image_cache import ImageCache, file_states, read_images
from fedsynth.data.image_files import read_picture
from fedsynth.data.labelled_images import Folds, LabelledImages, Names
from fedsynth.data.origins import Origins, split_test
from fedsynth.data.pixels import decode_all, to_pixels
from fedsynth.data.value_range import DeepPixels
from fedsynth.errors import UserError, did_you_mean
from fedsynth.files import read_text
from fedsynth.progress import followed
from fedsynth.text import visible

logger = logging.getLogger("fedsynth")

CAMELYON17_CLASSES = ("normal", "tumor")
"""Whether the central 32x32 pixels of a patch hold any tumour."""
_SIDE, _LABELLED_SIDE = 96, 32
_COLUMNS = ("patient", "node", "x_coord", "y_coord", "tumor", "slide", "center")
_SILO_COLUMNS, _GROUP_COLUMNS = ("center",), ("patient", "slide")


def load_camelyon17(
    root: Path,
    image_size: int | None,
    channels: int | None,
    skip_bad_images: bool,
    seed: int,
    origins: Origins,
    cache: ImageCache | None = None,
) -> Folds:
    """Read the patches in ``root`` (or its ``camelyon17_v1.0``), split 80/20 by patient, within every natural silo.

    The label speaks of the centre of a patch, so that images are its central pixels and never resized.

    Args:
        root: the folder that holds ``metadata.csv`` and ``patches/``.
        image_size: height and width in pixels, at most 96. None: 32, what the label speaks of.
        channels: 1 or 3. None: 3.
        skip_bad_images: leave out unreadable images, with a logged warning, instead of refusing.
        seed: decides the split.
        origins: silos are the hospitals (``center``, 0 to 4); groups are patients, or
            ``slide``. WILDS' own test fold is the silo 2.
        cache: receives large sets, decoded; None: they are held in memory.

    Raises:
        UserError: files are missing or malformed, a size out of range, other columns, or images that cannot be read.
    """
    size = image_size or _LABELLED_SIDE
    if size > _SIDE:
        raise UserError(f"image-size = {size}: patches of Camelyon17 have {_SIDE} pixels; give that or less")
    folder = root / "camelyon17_v1.0" if (root / "camelyon17_v1.0").is_dir() else root
    silo_column = _column("silo-column", origins.silo_column, _SILO_COLUMNS)
    group_column = _column("group-column", origins.group_column, _GROUP_COLUMNS)
    rows = _rows(folder / "metadata.csv")
    images, good = _decoded([_patch(folder, row) for row in rows], size, channels or 3, skip_bad_images, cache)
    labels = np.array([int(row["tumor"]) for row in rows], np.int64)
    silos = _names(rows, silo_column)[good] if origins.natural else None
    groups = _names(rows, group_column)[good]
    data = LabelledImages(images, labels[good], CAMELYON17_CLASSES, silos, groups)
    return split_test(data, origins.test_silo, seed)


def _column(key: str, given: str, allowed: Sequence[str]) -> str:
    if given and given not in allowed:
        raise UserError(
            f"{key} = '{given}': of camelyon17 it is one of {', '.join(allowed)}{did_you_mean(given, allowed)}"
        )
    return given or allowed[0]


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        reader = csv.DictReader(read_text(path).splitlines(), strict=True)
        rows = [{column: str(row.get(column)) for column in _COLUMNS} for row in reader]
        missing = [column for column in _COLUMNS if column not in (reader.fieldnames or ())]
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(
            f"'{path}' cannot be read ({error}): put metadata.csv and patches/ of Camelyon17-WILDS into '{path.parent}'"
        ) from error
    if missing or not rows:
        raise UserError(f"'{path}' has no {missing[0] if missing else 'rows'}: fetch Camelyon17-WILDS again")
    for number, row in enumerate(rows, start=1):
        # They become paths and labels.
        if not all(value.isascii() and value.isdigit() for value in row.values()) or row["tumor"] not in ("0", "1"):
            raise UserError(f"'{path}', row {number}: {visible(str(list(row.values())))}: fetch it again")
    return rows


def _patch(folder: Path, row: dict[str, str]) -> Path:
    node = f"patient_{row['patient']}_node_{row['node']}"
    return folder / "patches" / node / f"patch_{node}_x_{row['x_coord']}_y_{row['y_coord']}.png"


def _names(rows: Sequence[dict[str, str]], column: str) -> Names:
    return np.array([row[column] for row in rows], dtype=np.str_)


def _decoded(
    paths: Sequence[Path], size: int, channels: int, skip_bad_images: bool, cache: ImageCache | None
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    first = (_SIDE - size) // 2

    def read(path: Path) -> NDArray[np.uint8]:
        picture = read_picture(path, None, False)
        if isinstance(picture, DeepPixels) or picture.size != (_SIDE, _SIDE):
            raise ValueError(f"not {_SIDE} x {_SIDE} pixels of 8 bits")
        return to_pixels(picture.crop((first, first, first + size, first + size)), size, channels)

    def fill(out: NDArray[np.uint8]) -> NDArray[np.bool_]:
        return decode_all(out, followed(paths, "reading images:", logger.info), read, str, skip_bad_images)

    settings = ["central", skip_bad_images]
    return read_images((len(paths), size, size, channels), fill, cache, lambda: [file_states(paths), settings])
