"""The released dataset: labelled synthetic images, written as a folder that other tools reopen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedsynth.disk import check_free_space, explained_writing
from fedsynth.errors import UserError
from fedsynth.files import atomic_directory, atomic_file, json_text, parse_json
from fedsynth.output.class_folders import folder_names
from fedsynth.output.dataset_card import dataset_card

METADATA = "metadata.jsonl"
PROVENANCE = "provenance.json"
_BLOCK_BYTES = 4096


@dataclass(frozen=True, eq=False)
class SyntheticDataset:
    """Labelled synthetic images and how they were made.

    Attributes:
        images: uint8 (N, H, W, C) with C = 1 (grey) or 3 (RGB), N >= 1.
        labels: int64 (N,), positions in ``classes``.
        classes: Distinct class names; a class may have no image.
        provenance: JSON-ready. The card shows the keys ``method``, ``settings`` (resolved), ``silos`` (their number, or
            a list with one entry each), ``seed``, ``software`` (name to version), ``caveats`` (sentences), ``license``,
            ``privacy`` (see :mod:`fedsynth.privacy.statement`), ``certified`` (``by`` whom, ``head`` of the chain),
            ``quality`` (measure to columns) and ``verdict``.

    Raises:
        ValueError: A field breaks these rules.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    provenance: Mapping[str, Any]

    def __post_init__(self) -> None:
        images, labels, classes = self.images, self.labels, self.classes
        if images.dtype != np.uint8 or images.ndim != 4 or images.size == 0 or images.shape[3] not in (1, 3):
            raise ValueError(
                f"images: got {images.dtype} {images.shape}, want uint8 (N, H, W, C) with C = 1 or 3 and N, H, W >= 1"
            )
        if not classes or not all(isinstance(name, str) for name in classes) or len(set(classes)) != len(classes):
            raise ValueError(f"classes: got {classes!r}, want one or more distinct names")
        if labels.dtype != np.int64 or labels.shape != (len(images),):
            raise ValueError(f"labels: got {labels.dtype} {labels.shape}, want int64 ({len(images)},)")
        if labels.min() < 0 or labels.max() >= len(classes):
            raise ValueError(f"labels: got {labels.min()} to {labels.max()}, want 0 to {len(classes) - 1}")
        try:
            json_text(dict(self.provenance))
        except (TypeError, ValueError) as error:
            raise ValueError(f"provenance must be JSON-ready: {error}") from error

    def __repr__(self) -> str:
        return f"{type(self).__name__}(images={self.images.shape}, classes={list(self.classes)})"

    def counts(self) -> NDArray[np.int64]:
        """Return the number of images of each class, (C,)."""
        return np.bincount(self.labels, minlength=len(self.classes)).astype(np.int64)


def write_dataset(dataset: SyntheticDataset, path: Path) -> None:
    """Write the dataset as a folder, whole or not at all; an earlier dataset at ``path`` is replaced.

    The folder holds ``<class>/<number>.png`` (the number is the image's position), ``metadata.jsonl`` with the label of
    every image, ``provenance.json`` and a card, ``README.md``. ``torchvision.datasets.ImageFolder`` and
    ``datasets.load_dataset("imagefolder", data_dir=...)`` read it; in both the label is the folder's name. A class
    without images has no folder, because torchvision refuses empty ones. The same dataset gives the same bytes.

    Raises:
        UserError: ``path`` holds something else, cannot be written, or the disk is full.
    """
    if path.is_dir() and any(path.iterdir()) and not (path / PROVENANCE).is_file():
        raise UserError(f"'{path}' is not empty and holds no dataset of fedsynth: choose another folder, or empty it")
    if path.exists() and not path.is_dir():
        raise UserError(f"cannot write the dataset to '{path}': it is a file; choose a folder")
    check_free_space(path, dataset.images.nbytes + len(dataset.images) * _BLOCK_BYTES)
    folders = folder_names(dataset.classes)
    with explained_writing(path), atomic_directory(path) as folder:
        files = _write_images(dataset, folders, folder)
        rows = [{"file_name": file, "label": file.split("/")[0]} for file in files]
        (folder / METADATA).write_text("".join(json_text(row) + "\n" for row in rows), encoding="utf-8")
        for name, text in _documents(dataset).items():
            (folder / name).write_text(text, encoding="utf-8")


def describe_dataset(dataset: SyntheticDataset, path: Path) -> None:
    """Write ``provenance.json`` and the card of the dataset at ``path`` anew: when it is measured, more is known of it.

    Raises:
        UserError: they cannot be written.
    """
    with explained_writing(path):
        for name, text in _documents(dataset).items():
            with atomic_file(path / name) as file:
                file.write_text(text, encoding="utf-8")


def read_dataset(path: Path) -> SyntheticDataset:
    """Read what :func:`write_dataset` wrote: same images, order, labels, classes and provenance.

    Raises:
        UserError: The folder is not such a dataset, or one of its files is damaged.
    """
    try:
        record = parse_json((path / PROVENANCE).read_text(encoding="utf-8"))
        rows = [parse_json(line) for line in (path / METADATA).read_text(encoding="utf-8").splitlines()]
        positions = {entry["folder"]: index for index, entry in enumerate(record["classes"])}
        return SyntheticDataset(
            images=np.stack([_read_image(path / row["file_name"]) for row in rows]),
            labels=np.array([positions[row["label"]] for row in rows], dtype=np.int64),
            classes=tuple(entry["name"] for entry in record["classes"]),
            provenance=record["provenance"],
        )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"'{path}' is not a dataset written by fedsynth, or it is damaged: {error}") from error


def image_files(dataset: SyntheticDataset, folders: Sequence[str]) -> list[str]:
    """Return the path of every image in the dataset's folder, in order; ``folders`` are the classes', (C,)."""
    width = max(5, len(str(len(dataset.images) - 1)))
    return [f"{folders[label]}/{index:0{width}d}.png" for index, label in enumerate(dataset.labels)]


def _documents(dataset: SyntheticDataset) -> dict[str, str]:
    """Return what stands beside the images, by file name."""
    folders = folder_names(dataset.classes)
    classes = [{"name": n, "folder": f} for n, f in zip(dataset.classes, folders, strict=True)]
    record = {"classes": classes, "provenance": dict(dataset.provenance)}
    card = dataset_card(dataset.images.shape, dataset.counts().tolist(), dataset.classes, folders, dataset.provenance)
    return {PROVENANCE: json_text(record, indent=2) + "\n", "README.md": card}


def _write_images(dataset: SyntheticDataset, folders: tuple[str, ...], root: Path) -> list[str]:
    files = image_files(dataset, folders)
    for label in np.unique(dataset.labels):
        (root / folders[label]).mkdir()
    for file, image in zip(files, dataset.images, strict=True):
        Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(root / file, format="PNG")
    return files


def _read_image(file: Path) -> NDArray[np.uint8]:
    with Image.open(file) as image:
        pixels = np.asarray(image, dtype=np.uint8)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels
