"""CelebA (Liu et al. 2015, "Deep Learning Face Attributes in the Wild") with eight classes from three attributes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fedsynth.data.image_cache import ImageCache
from fedsynth.data.labelled_images import Folds, LabelledImages
from fedsynth.data.pixels import decode_files
from fedsynth.errors import UserError

ATTRIBUTES = ("Male", "Smiling", "Eyeglasses")
_TRAIN, _TEST = "0", "2"

CELEBA_CLASSES = tuple(
    f"{sex}-{smile}-{glasses}"
    for sex in ("female", "male")
    for smile in ("not-smiling", "smiling")
    for glasses in ("no-glasses", "glasses")
)
"""Class 4·Male + 2·Smiling + Eyeglasses, each attribute 0 or 1."""


def load_celeba(
    root: Path, image_size: int, channels: int, skip_bad_images: bool, cache: ImageCache | None = None
) -> Folds:
    """Read the train and test folds of CelebA's own partition; its validation fold stays unused.

    The files are those of ``torchvision.datasets.CelebA`` in ``root/celeba`` (or in ``root`` itself), read without
    its checksums, so that an excerpt works too. The 178x218 images are cropped to their central 178x178, then resized.

    Args:
        root: the data root.
        image_size: height and width in pixels.
        channels: 1 or 3.
        skip_bad_images: leave out unreadable images, with a logged warning, instead of refusing.
        cache: receives large sets, decoded; None: they are held in memory.

    Raises:
        UserError: files are missing or malformed, a fold is empty, or images cannot be read.
    """
    folder = _find(root)
    labels = _read_labels(folder / "list_attr_celeba.txt")
    folds = {name: fold for name, fold in _rows(folder / "list_eval_partition.txt", 2)}

    def read(fold: str) -> LabelledImages:
        chosen = {name: label for name, label in labels.items() if folds.get(name) == fold}
        return _read_fold(folder, chosen, fold, image_size, channels, skip_bad_images, cache)

    return read(_TRAIN), read(_TEST)


def _find(root: Path) -> Path:
    folder = root / "celeba" if (root / "celeba").is_dir() else root
    needed = ("list_attr_celeba.txt", "list_eval_partition.txt", "img_align_celeba")
    missing = [name for name in needed if not (folder / name).exists()]
    if missing:
        raise UserError(
            f"CelebA is not complete in '{folder}', missing: {', '.join(missing)}. Put list_attr_celeba.txt, "
            "list_eval_partition.txt and the folder img_align_celeba/ (the unpacked aligned JPEG images) into "
            f"'{root / 'celeba'}', or set download=true"
        )
    return folder


def _rows(path: Path, width: int, first_line: int = 1) -> Iterator[list[str]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        fields = line.split()
        if number < first_line or not fields:
            continue
        if len(fields) != width:
            raise UserError(f"line {number} of '{path}' has {len(fields)} fields, not {width}: fetch the file again")
        yield fields


def _read_labels(path: Path) -> dict[str, int]:
    header = path.read_text(encoding="utf-8").splitlines()[1:2]
    names = header[0].split() if header else []
    absent = [name for name in ATTRIBUTES if name not in names]
    if absent:
        raise UserError(f"'{path}' lacks the attribute {absent[0]} in its second line: fetch the file again")
    male, smiling, glasses = (names.index(name) + 1 for name in ATTRIBUTES)
    return {
        row[0]: 4 * (row[male] == "1") + 2 * (row[smiling] == "1") + (row[glasses] == "1")
        for row in _rows(path, len(names) + 1, 3)
    }


def _read_fold(
    folder: Path,
    labels: dict[str, int],
    fold: str,
    image_size: int,
    channels: int,
    skip_bad_images: bool,
    cache: ImageCache | None,
) -> LabelledImages:
    if not labels:
        raise UserError(f"list_eval_partition.txt in '{folder}' lists no image of fold {fold} (0 = train, 2 = test)")
    paths = [folder / "img_align_celeba" / name for name in labels]
    images, good = decode_files(paths, image_size, channels, skip_bad_images=skip_bad_images, cache=cache)
    return LabelledImages(images, np.array(list(labels.values()), np.int64)[good], CELEBA_CLASSES)
