"""MedMNIST v2 and MedMNIST+ (Yang et al. 2023, "MedMNIST v2") from the ``.npz`` files that its authors publish."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from fedsynth.data.image_cache import ImageCache, file_states, read_images
from fedsynth.data.labelled_images import Folds, LabelledImages
from fedsynth.data.medmnist_index import MEDMNIST, MEDMNIST_REFUSED, MEDMNIST_SIZES, MedMNISTSet
from fedsynth.data.pixels import conform
from fedsynth.errors import UserError, did_you_mean

_CHUNK_BYTES = 2**24


def load_medmnist(
    name: str,
    root: Path,
    image_size: int | None,
    channels: int | None,
    cache: ImageCache | None = None,
    index: Mapping[str, MedMNISTSet] = MEDMNIST,
) -> Folds:
    """Read the train and test folds of a set; its validation fold stays unused.

    Of the sizes 28, 64, 128 and 224 the smallest that has at least ``image_size`` pixels is read, and resized.

    Args:
        name: of the set, such as ``bloodmnist``.
        root: the folder that holds the file, ``bloodmnist.npz`` or, of 64 pixels, ``bloodmnist_64.npz``.
        image_size: height and width in pixels, at most 224. None: 28.
        channels: 1 or 3. None: the set's own.
        cache: receives large sets, decoded; None: they are held in memory.
        index: the sets that are known.

    Raises:
        UserError: no such set, one of volumes or with several labels an image, a larger size, no file, or one whose MD5
            sum is not that of the index.
    """
    known = _find(name, index)
    size = image_size or MEDMNIST_SIZES[0]
    if size > MEDMNIST_SIZES[-1]:
        raise UserError(f"image-size = {size}: MedMNIST has at most {MEDMNIST_SIZES[-1]} pixels; give that or less")
    side = next(side for side in MEDMNIST_SIZES if side >= size)
    path = root / (f"{name}.npz" if side == MEDMNIST_SIZES[0] else f"{name}_{side}.npz")
    _check(path, size, known.md5[MEDMNIST_SIZES.index(side)])
    state = file_states([path])
    try:
        with zipfile.ZipFile(path) as archive:
            train, test = (
                _read(archive, fold, known, side, size, channels or known.channels, cache, state)
                for fold in ("train", "test")
            )
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, KeyError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"'{path}' is not a MedMNIST file ({error}): fetch it again") from error
    return train, test


def _find(name: str, index: Mapping[str, MedMNISTSet]) -> MedMNISTSet:
    if reason := MEDMNIST_REFUSED.get(name):
        raise UserError(f"dataset = 'medmnist:{name}': {reason}; take one of {', '.join(index)}")
    if not name:
        raise UserError(f"dataset = 'medmnist': name a set, as 'medmnist:bloodmnist' does (known: {', '.join(index)})")
    if name not in index:
        raise UserError(
            f"dataset = 'medmnist:{name}': MedMNIST has no such set{did_you_mean(name, [*index, *MEDMNIST_REFUSED])}"
            f" (known: {', '.join(index)})"
        )
    return index[name]


def _check(path: Path, size: int, md5: str) -> None:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise UserError(
            f"image-size = {size} needs '{path}' ({error.strerror}): fetch {path.name} from medmnist.com into"
            f" '{path.parent}'"
        ) from error
    if found != md5:
        raise UserError(f"'{path}' is not MedMNIST's file: its MD5 sum is {found}, not {md5}; fetch it again")


def _read(
    archive: zipfile.ZipFile,
    fold: str,
    known: MedMNISTSet,
    side: int,
    size: int,
    channels: int,
    cache: ImageCache | None,
    state: list[tuple[str, int, int]],
) -> LabelledImages:
    with archive.open(f"{fold}_labels.npy") as file:
        count, *more = _shape(file, np.dtype(np.uint8))
        if more not in ([], [1]):
            raise ValueError(f"{fold}_labels has the shape {(count, *more)}")
        labels = np.frombuffer(file.read(count), np.uint8).astype(np.int64)
    if len(labels) != count or not count or labels.max() >= len(known.classes):
        raise ValueError(f"{fold}_labels does not fit {len(known.classes)} classes")

    def fill(out: NDArray[np.uint8]) -> NDArray[np.bool_]:
        with archive.open(f"{fold}_images.npy") as file:
            image_shape = (side, side) if known.channels == 1 else (side, side, known.channels)
            if _shape(file, np.dtype(np.uint8)) != (count, *image_shape):
                raise ValueError(f"{fold}_images does not have the shape {(count, *image_shape)}")
            rows = max(1, _CHUNK_BYTES // (side * side * known.channels))
            for start in range(0, count, rows):
                wanted = out[start : start + rows]
                pixels = np.frombuffer(file.read(len(wanted) * side * side * known.channels), np.uint8)
                stored = pixels.reshape(len(wanted), side, side, known.channels)
                wanted[:] = conform(stored, size, channels)
        return np.ones(count, dtype=bool)

    images, _ = read_images((count, size, size, channels), fill, cache, lambda: [state, fold])
    return LabelledImages(images, labels, known.classes)


def _shape(file: IO[bytes], dtype: np.dtype[np.uint8]) -> tuple[int, ...]:
    """Read the header of an array of ``dtype`` and return its shape; numpy's own reader would take all at once.

    Raises:
        ValueError: another type, such as pickled objects, or another order.
    """
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, columns_first, found = read(file)
    if found != dtype or columns_first:
        raise ValueError(f"an array of {found}, not of {dtype} in row order")
    return tuple(shape)
