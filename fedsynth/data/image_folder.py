"""Folders of class folders, in the layout of ``torchvision.datasets.ImageFolder``."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fedsynth.data.labelled_images import Folds, LabelledImages, stratified_split
from fedsynth.data.pixels import GREY_MODES, IMAGE_SUFFIXES, decode_files
from fedsynth.errors import UserError, did_you_mean
from fedsynth.seeding import derive_seed
from fedsynth.spec import ImageSpec

_LAYOUT = "one folder per class, each with that class's images (<class>/<image>.png, .jpg, ...)"
_FOLD_NAMES = frozenset({"train", "test", "val", "valid", "validation"})
_LARGEST_NATIVE_SIZE = 64
_DEFAULT_SIZE = 32


def read_image_folder(
    path: str | Path,
    *,
    image_size: int | None = None,
    channels: int | None = None,
    skip_bad_images: bool = False,
    classes: Sequence[str] | None = None,
) -> LabelledImages:
    """Read every image below the class folders of ``path``, converted as ``pixels.to_pixels`` describes.

    Classes are the folder names, sorted as torchvision sorts them. Files count by torchvision's extensions, in
    subfolders too; names that start with a dot are ignored.

    Args:
        path: the folder that holds the class folders.
        image_size: height and width in pixels. None: the images' own if all are equal squares of at most 64, else 32.
        channels: 1 or 3. None: 1 if every file is stored as grey, else 3 (palette images count as colour).
        skip_bad_images: leave out unreadable files, with a logged warning, instead of refusing.
        classes: names that fix the labels; ``path`` may lack some of them. None: the folders found.

    Raises:
        UserError: ``path`` or its class folders are missing, a class folder is empty or not among ``classes``,
            or a file cannot be read and ``skip_bad_images`` is false, or the images do not fit into memory.
    """
    root = Path(path).expanduser()
    folders = _class_folders(root)
    names = tuple(folders) if classes is None else tuple(classes)
    for name in folders:
        if name not in names:
            raise UserError(
                f"class folder '{name}' in '{root}' is not a class of this dataset{did_you_mean(name, names)} "
                f"(classes: {', '.join(names)}): rename or remove it"
            )
    files = _files_by_class(root, folders)
    paths = [file for name in folders for file in files[name]]
    labels = np.array([names.index(name) for name in folders for _ in files[name]], dtype=np.int64)
    size, depth = _native_format(paths, image_size, channels)
    try:
        images, good = decode_files(paths, size, depth, skip_bad_images=skip_bad_images)
    except MemoryError as error:
        raise UserError(
            f"image-size = {size}: {len(paths)} images of {size} x {size} pixels in '{root}' do not fit into memory; "
            "give a smaller image-size"
        ) from error
    data = LabelledImages(images, labels[good], names)
    counts = data.label_counts()
    for name in folders:
        if counts[names.index(name)] == 0:
            raise UserError(f"no readable image in class folder '{name}' of '{root}': repair it or remove the folder")
    return data


def image_folder_spec(path: str | Path, image_size: int | None = None) -> ImageSpec:
    """Return format and classes that :func:`read_image_folder` would give ``path``, from the files' headers alone.

    Raises:
        UserError: ``path`` or its class folders are missing, or one is empty.
    """
    root = Path(path).expanduser()
    files = _files_by_class(root, folders := _class_folders(root))
    size, channels = _native_format([file for name in folders for file in files[name]], image_size, None)
    return ImageSpec(channels, size, tuple(folders))


def load_image_folder(
    path: str | Path,
    image_size: int | None,
    channels: int | None,
    skip_bad_images: bool,
    seed: int,
    classes: Sequence[str] | None = None,
) -> Folds:
    """Read the folds ``train/`` and ``test/`` of ``path`` or, without them, split its class folders 80/20.

    The split is stratified and depends on the labels and ``seed`` only. The train fold decides classes, size and
    channels of the test fold. Arguments and errors are those of :func:`read_image_folder`.
    """
    root = Path(path).expanduser()
    given: dict[str, Any] = {"image_size": image_size, "channels": channels, "classes": classes}
    if has_folds(root):
        train = read_image_folder(root / "train", skip_bad_images=skip_bad_images, **given)
        _, size, _, depth = train.images.shape
        given = {"image_size": size, "channels": depth, "classes": train.classes}
        return train, read_image_folder(root / "test", skip_bad_images=skip_bad_images, **given)
    data = read_image_folder(root, skip_bad_images=skip_bad_images, **given)
    rng = np.random.default_rng(derive_seed(seed, "image-folder-split"))
    stay, taken = stratified_split(data.labels, 0.2, rng)
    return data.subset(stay), data.subset(taken)


def describe_conversion(path: str | Path, image_shape: tuple[int, ...]) -> str:
    """Say how :func:`read_image_folder` changes the stored images to give them ``image_shape`` (H, W, C).

    Only the files' headers are read. Images of other sizes and grey or colour images are counted: ``"3 of 8 images from
    16 x 16 to 8 x 8 pixels, 8 of 8 from colour to grey"``; an empty string if nothing is changed.

    Raises:
        UserError: ``path`` or its class folders are missing.
    """
    files = [file for folder in _class_folders(Path(path).expanduser()).values() for file in _image_files(folder)[0]]
    headers = [header for header in map(_header, files) if header is not None]
    height, width, channels = image_shape
    others = Counter(size for size, _ in headers if size != (width, height))
    recoloured = sum((mode in GREY_MODES) != (channels == 1) for _, mode in headers)
    changes = []
    if others:
        (w, h), _ = others.most_common(1)[0]
        origin = f"{w} x {h}" + (" and other sizes" if len(others) > 1 else "")
        changes.append(f"{others.total()} of {len(headers)} images from {origin} to {width} x {height} pixels")
    if recoloured:
        changes.append(f"{recoloured} of {len(headers)} from {'colour to grey' if channels == 1 else 'grey to colour'}")
    return ", ".join(changes)


def has_folds(root: Path) -> bool:
    """Say whether ``root`` holds the folders ``train`` and ``test``."""
    return (root / "train").is_dir() and (root / "test").is_dir()


def _class_folders(root: Path) -> dict[str, Path]:
    if not root.is_dir():
        found = " (it is a file)" if root.exists() else ""
        raise UserError(
            f"there is no folder '{root}'{found}: point data-root (or data-path) at a folder that holds {_LAYOUT}"
        )
    try:
        entries = sorted((entry for entry in root.iterdir() if not entry.name.startswith(".")), key=lambda e: e.name)
    except PermissionError as error:
        raise UserError(f"the folder '{root}' may not be read: change its permissions") from error
    folders = {entry.name: entry for entry in entries if entry.is_dir()}
    if not folders:
        loose = sum(map(_is_image, entries))
        found = f" ({loose} images lie directly in it)" if loose else ""
        raise UserError(f"no class folders in '{root}'{found}: it must hold {_LAYOUT}")
    if folders.keys() <= _FOLD_NAMES:
        raise UserError(
            f"'{root}' holds {', '.join(folders)} instead of class folders: a dataset needs both train/ and test/ "
            "there; otherwise point at the folder that holds the class folders"
        )
    return folders


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def _files_by_class(root: Path, folders: dict[str, Path]) -> dict[str, list[Path]]:
    files = {}
    for name, folder in folders.items():
        files[name], hidden = _image_files(folder)
        if hidden:
            logging.getLogger("fedsynth").info("ignored %d hidden image files (names with a dot) in %s", hidden, folder)
    empty = [name for name, found in files.items() if not found]
    if empty:
        raise UserError(
            f"no images in class folder{'s' if len(empty) > 1 else ''} {', '.join(map(repr, empty))} of '{root}': "
            "put images there (.png, .jpg, ...) or remove the folder"
        )
    return files


def _image_files(folder: Path) -> tuple[list[Path], int]:
    """The images at any depth, and the number of hidden ones."""
    found: list[Path] = []
    hidden = 0
    for parent, subfolders, names in os.walk(folder, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        images = [Path(parent, name) for name in sorted(names) if _is_image(Path(name))]
        visible = [image for image in images if not image.name.startswith(".")]
        found += visible
        hidden += len(images) - len(visible)
    return found, hidden


def _native_format(paths: list[Path], image_size: int | None, channels: int | None) -> tuple[int, int]:
    if image_size is not None and channels is not None:
        return image_size, channels
    headers = [header for header in map(_header, paths) if header is not None]
    sizes = {size for size, _ in headers}
    side, height = sizes.pop() if len(sizes) == 1 else (0, 0)
    own = side if side == height and 0 < side <= _LARGEST_NATIVE_SIZE else _DEFAULT_SIZE
    grey = bool(headers) and all(mode in GREY_MODES for _, mode in headers)
    return image_size or own, channels or (1 if grey else 3)


def _header(path: Path) -> tuple[tuple[int, int], str] | None:
    try:
        with Image.open(path) as image:
            return image.size, image.mode
    except Exception:  # decode_files opens it again and reports it by name
        return None
