"""Features kept on disk, so that one set of images meets one extractor once."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedsynth.evaluation.extractors import Extracted, Extractor
from fedsynth.files import atomic_file

DIGEST_BYTES = hashlib.sha256().digest_size


def extract_cached(extractor: Extractor, images: npt.NDArray[np.uint8], folder: Path | None) -> Extracted:
    """Return what :meth:`Extractor.extract` does, from ``folder`` if it was computed before.

    A file is ``<folder>/<extractor>-<its hash>/<hash of the images>.npy``: float32 (N, D + classes), the features and
    then the logits of an extractor that has any. A checksum follows the array (``numpy.load`` ignores it); a damaged
    file is computed again. Several processes may share the folder.

    Args:
        extractor: computes what is not there.
        images: uint8 (N, H, W, C); their order counts.
        folder: None: nothing is kept.

    Raises:
        UserError: as :meth:`Extractor.extract` does.
    """
    if folder is None:
        return extractor.extract(images)
    path = folder / f"{extractor.name}-{extractor.content_hash[:16]}" / f"{_content_hash(images)}.npy"
    kept = _read(path, len(images), extractor.dimension)
    if kept is None:
        kept = extractor.extract(images)
        _write(path, kept)
    return kept


def _content_hash(images: npt.NDArray[np.uint8]) -> str:
    digest = hashlib.sha256(f"{images.dtype} {images.shape}".encode())
    digest.update(np.ascontiguousarray(images).data)
    return digest.hexdigest()


def _write(path: Path, extracted: Extracted) -> None:
    columns = [extracted.features, *([] if extracted.logits is None else [extracted.logits])]
    content = io.BytesIO()
    np.save(content, np.concatenate(columns, axis=1), allow_pickle=False)
    content.write(hashlib.sha256(content.getbuffer()).digest())
    with atomic_file(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def _read(path: Path, count: int, dimension: int) -> Extracted | None:
    """What the file holds; None unless it is there, whole and of ``count`` images."""
    content = path.read_bytes() if path.is_file() else b""
    array, digest = memoryview(content)[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
    if hashlib.sha256(array).digest() != digest:
        return None
    columns = np.load(io.BytesIO(array), allow_pickle=False)
    if len(columns) != count or columns.shape[1] < dimension:
        return None
    features, logits = np.ascontiguousarray(columns[:, :dimension]), np.ascontiguousarray(columns[:, dimension:])
    return Extracted(features, logits if logits.size else None)
