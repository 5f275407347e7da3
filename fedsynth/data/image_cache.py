"""Decoded images on disk, mapped into memory: a set larger than memory is read as it is needed, and decoded once."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import math
import mmap
import os
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray

from fedsynth.disk import check_free_space, describe_write_error
from fedsynth.errors import FilesError, UserError
from fedsynth.files import atomic_file

logger = logging.getLogger("fedsynth")

LARGE_BYTES = 2**28
"""Images of at least so many bytes (21,846 of 64x64 in colour) lie on disk; fewer are held in memory."""
_FORMAT = 1
_CHUNK_BYTES = 2**24
_KEPT_BYTES = 2**26
_ROWS_AT_ONCE = 256
_MAPPED_AT_ONCE = 2**16
"""Bytes of a file that the system maps around a page that is asked for."""
_CHECKSUM_BYTES = 8

Fill = Callable[[NDArray[np.uint8]], NDArray[np.bool_]]
"""Write images to their rows of an array (N, H, W, C), and return which rows (N,) hold one."""


@dataclass(frozen=True)
class ImageCache:
    """Where decoded images lie.

    Attributes:
        folder: receives the files. Several processes may share it, and it may be removed whenever none is at work.
        single: keep the newest file alone, so that whoever asks for one size of images after the other does not fill
            the disk.
        most_bytes: of a file.
    """

    folder: Path
    single: bool = False
    most_bytes: float = math.inf


class MappedImages(np.memmap[Any, Any]):
    """A ``numpy.memmap`` of images that lets go of what it has read: pages of the file count as memory of a process.

    Rows that are chosen by their numbers come as an array in memory.
    """

    _touched = 0

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, np.ndarray) and index.ndim == 1 and index.dtype.kind in "iu":
            return self._rows(index)
        found = super().__getitem__(index)
        if not isinstance(found, np.ndarray):
            return found
        self._let_go(found.nbytes)
        return found if np.may_share_memory(found, self) else found.view(np.ndarray)

    def _rows(self, index: NDArray[Any]) -> NDArray[Any]:
        found = np.empty((len(index), *self.shape[1:]), self.dtype)
        for first in range(0, len(index), _ROWS_AT_ONCE):
            some = index[first : first + _ROWS_AT_ONCE]
            found[first : first + _ROWS_AT_ONCE] = super().__getitem__(some)
            self._let_go(len(some) * max(math.prod(self.shape[1:]), _MAPPED_AT_ONCE))
        return found

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(index, value)
        self._let_go(np.asarray(value).nbytes)

    def _let_go(self, size: int) -> None:
        """Count bytes that were touched, and now and then drop the pages; whoever needs them finds them in the file."""
        mapping = getattr(self, "_mmap", None)
        self._touched += size
        if self._touched > _KEPT_BYTES and mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._touched = 0
            mapping.madvise(mmap.MADV_DONTNEED)


def read_images(
    shape: tuple[int, int, int, int], fill: Fill, cache: ImageCache | None, source: Callable[[], Any]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return the images that ``fill`` writes; large ones from a file, which is made if it is not there.

    A file is ``<hash of source and shape>.images``: the pixels of all rows that hold an image, a byte for every row
    that says so, and a CRC-32 of both in hexadecimal digits. One that is damaged is made again.

    Args:
        shape: (N, H, W, C) of the array that ``fill`` gets.
        fill: decodes the images.
        cache: where the file lies; None: everything is held in memory.
        source: what decides the pixels, ready for JSON, such as :func:`file_states` and the settings of reading.

    Returns:
        The images, uint8 (M, H, W, C), and a mask (N,) of the rows they come from. Images that lie on disk are
        :class:`MappedImages` that nobody can write to.

    Raises:
        FilesError: the file cannot be written, or would be too large.
    """
    if cache is None or math.prod(shape) < LARGE_BYTES:
        images = np.empty(shape, np.uint8)
        good = fill(images)
        return (images if good.all() else images[good]), good
    name = hashlib.sha256(json.dumps([_FORMAT, decoders(), shape, source()]).encode()).hexdigest()
    path = cache.folder.absolute() / f"{name[:40]}.images"
    found = _open(path, shape)
    if found is None:
        if math.prod(shape) > cache.most_bytes:
            raise FilesError(
                f"decoded images take {math.prod(shape) / 1e6:.0f} MB, more than the {cache.most_bytes / 1e6:.0f} MB"
                " allowed (disk-mb of the policy): raise it, or have the run use smaller images",
                "decoded images would take more than disk-mb of the policy: the silo's log says how much",
            )
        if cache.single:
            _remove_others(path)
        _make(path, shape, fill)
        found = _open(path, shape)
        assert found is not None
        logger.info("images: %d of %d x %d pixels lie decoded in %s", len(found[0]), *shape[1:3], path)
    elif not found[1].all():
        logger.warning("images: %d of %d that could not be read are left out", (~found[1]).sum(), len(found[1]))
    return found


def decoders() -> list[str]:
    """Return the versions of what reads files: an image that one version cannot read, another can."""
    with_dicom = importlib.util.find_spec("pydicom") is not None
    return [PIL.__version__, version("pydicom") if with_dicom else ""]


def file_states(paths: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Return path, size and time of change (nanoseconds) of every file, -1 and -1 of one that is not there."""
    return [(str(path.absolute()), *_state(path)) for path in paths]


def take_rows(images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return ``images[rows]``; many rows of :class:`MappedImages` as others, in a file that vanishes with them.

    Raises:
        FilesError: the file, in the folder of the first, cannot be written.
    """
    source = getattr(images, "filename", None)
    shape = (len(rows), *images.shape[1:])
    if source is None or math.prod(shape) < LARGE_BYTES:
        return images[rows]
    return _unnamed(source, shape, (images[some] for some in np.array_split(rows, _chunks(shape))))


def join_images(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the images of both; many of :class:`MappedImages` as others, as :func:`take_rows` does.

    Raises:
        FilesError: as there.
    """
    source = getattr(first, "filename", None) or getattr(second, "filename", None)
    shape = (len(first) + len(second), *first.shape[1:])
    if source is None or math.prod(shape) < LARGE_BYTES:
        return np.concatenate([first, second])
    return _unnamed(
        source, shape, (piece for part in (first, second) for piece in np.array_split(part, _chunks(shape)))
    )


def _unnamed(source: Any, shape: tuple[int, ...], pieces: Iterable[NDArray[np.uint8]]) -> MappedImages:
    """Write images, piece by piece, to a file without a name beside ``source``."""
    folder = Path(source).parent
    with _written(folder, math.prod(shape)), tempfile.TemporaryFile(dir=folder) as file:
        for piece in pieces:
            file.write(np.ascontiguousarray(piece).data)
        file.flush()
        taken = MappedImages(file, np.uint8, "r", shape=shape)
    # What is taken from these images must know where to lie.
    taken.filename = source
    return taken


def _remove_others(path: Path) -> None:
    for other in path.parent.glob(f"*{path.suffix}"):
        if other != path:
            other.unlink(missing_ok=True)


def _state(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:  # whoever reads it says so
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _make(path: Path, shape: tuple[int, int, int, int], fill: Fill) -> None:
    size = math.prod(shape)
    with _written(path, size):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary:
            temporary.touch(mode=0o600)  # the images may be for their owner's eyes only
            with temporary.open("wb") as file:
                # Without the room a write to mapped memory would end the process.
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size)
                else:
                    file.truncate(size)
            images = MappedImages(temporary, np.uint8, "r+", shape=shape)
            good = _filled(images, fill)
            kept = _close_gaps(images, good)
            images.flush()
            del images
            with temporary.open("r+b") as file:
                file.truncate(kept * (size // shape[0]))
                file.seek(0, os.SEEK_END)
                file.write(good.astype(np.uint8).tobytes())
                file.flush()
                checksum = _checksum(temporary, file.tell())
                file.write(checksum)


def _filled(images: NDArray[np.uint8], fill: Fill) -> NDArray[np.bool_]:
    try:
        return fill(images)
    except OSError as error:  # not one of the file that is being written
        raise UserError(f"images cannot be read: {error}") from None


@contextmanager
def _written(path: Path, size: int) -> Iterator[None]:
    """Check that there is room for a file, and explain why it cannot be written: its size tells how many images are."""
    elsewhere = "images cannot be kept decoded on the disk: the silo's log says why"
    try:
        check_free_space(path, size)
    except UserError as error:
        raise FilesError(str(error), elsewhere) from error
    try:
        yield
    except OSError as error:
        raise FilesError(str(describe_write_error(error, path)), elsewhere) from error


def _close_gaps(images: NDArray[np.uint8], good: NDArray[np.bool_]) -> int:
    """Move the rows that hold an image to the front, in their order, and return their number."""
    rows = np.flatnonzero(good)
    if len(rows) < len(images):
        for position, row in enumerate(rows):
            images[position] = images[row]
    return len(rows)


def _open(path: Path, shape: tuple[int, int, int, int]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]] | None:
    """What a file holds; None unless it is there and whole."""
    count, row_bytes = shape[0], math.prod(shape[1:])
    try:
        with path.open("rb") as file:
            end = file.seek(-count - _CHECKSUM_BYTES, os.SEEK_END)
            good = np.frombuffer(file.read(count), np.uint8) == 1
            checksum = file.read(_CHECKSUM_BYTES)
        if end != int(good.sum()) * row_bytes or checksum != _checksum(path, end + count):
            logger.warning("%s is damaged: it is made again", path)
            return None
        return MappedImages(path, np.uint8, "r", shape=(int(good.sum()), *shape[1:])), good
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logger.warning("%s cannot be used (%s): it is made again", path, error)
        return None


def _checksum(path: Path, length: int) -> bytes:
    """CRC-32 of the first ``length`` bytes, read piece by piece."""
    checksum = 0
    with path.open("rb") as file:
        for start in range(0, length, _CHUNK_BYTES):
            checksum = zlib.crc32(file.read(min(_CHUNK_BYTES, length - start)), checksum)
    return b"%08x" % checksum


def _chunks(shape: tuple[int, ...]) -> int:
    return max(1, math.prod(shape) // _CHUNK_BYTES)
