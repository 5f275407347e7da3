"""Folders of class folders, in the layout of ``torchvision.datasets.ImageFolder``."""

from __future__ import annotations

import logging
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsynth.data.duplicate_images import describe_repeats, describe_shared
from fedsynth.data.folder_layout import find_folds, named
from fedsynth.data.folder_listing import UNLABELLED, FolderListing
from fedsynth.data.folder_origins import add_groups, list_with_origins, origins_in_folders
from fedsynth.data.image_cache import ImageCache
from fedsynth.data.image_files import Header, header_problem, read_header, read_picture, reason_of
from fedsynth.data.kept_facts import kept_facts
from fedsynth.data.labelled_images import Folds, LabelledImages
from fedsynth.data.origins import Origins, split_test
from fedsynth.data.pixels import decode_files, find_value_range
from fedsynth.data.value_range import ValueRange
from fedsynth.errors import FilesError, UserError, did_you_mean
from fedsynth.progress import followed
from fedsynth.spec import ImageSpec
from fedsynth.text import visible

logger = logging.getLogger("fedsynth")

_LARGEST_NATIVE_SIZE = 64
_DEFAULT_SIZE = 32
_NO_ORIGINS = Origins()


def read_image_folder(
    path: str | Path,
    *,
    image_size: int | None = None,
    channels: int | None = None,
    skip_bad_images: bool = False,
    classes: Sequence[str] | None = None,
    value_range: ValueRange | None = None,
    first_page_only: bool = False,
    group_column: str = "",
    cache: ImageCache | None = None,
) -> LabelledImages:
    """Read every image below the class folders of ``path``, converted as ``pixels.to_pixels`` describes.

    Classes are the folder names, sorted as torchvision sorts them. Files count by their suffixes, in subfolders too;
    what else lies there is said in one line (:mod:`fedsynth.data.folder_listing`).

    Args:
        path: the folder that holds the class folders.
        image_size: height and width in pixels. None: the images' own if all are equal squares of at most 64, else 32.
        channels: 1 or 3. None: 1 if every file is stored as grey, else 3 (palette images count as colour).
        skip_bad_images: leave out unreadable files, with a logged warning, instead of refusing.
        classes: names that fix the labels; ``path`` may lack some of them. None: the folders found.
        value_range: what of more than 8 bits becomes black and white. None: found, see ``pixels.find_value_range``.
        first_page_only: take the first page or frame of files with several, instead of refusing them.
        group_column: column of the table in ``path`` that names each image's group (:mod:`fedsynth.data.metadata`).
        cache: receives large sets, decoded; None: they are held in memory.

    Raises:
        UserError: ``path`` holds no class folders, or others than ``classes``, a class folder is empty, a folder cannot
            be listed, a file cannot be read and ``skip_bad_images`` is false, the images do not fit into memory, or the
            table lacks a group.
    """
    listing = _listed(Path(path).expanduser(), classes or ())
    if group_column:
        add_groups(listing, group_column)
    given = image_size, channels, skip_bad_images, classes, value_range, first_page_only, cache
    return _read(listing, *given)[0]


def read_with_unlabelled(
    path: str | Path,
    *,
    image_size: int,
    channels: int,
    classes: Sequence[str],
    skip_bad_images: bool = False,
    value_range: ValueRange | None = None,
    first_page_only: bool = False,
    group_column: str = "",
    cache: ImageCache | None = None,
) -> tuple[LabelledImages, LabelledImages]:
    """Read class folders as :func:`read_image_folder` does, and the folder ``unlabelled`` beside them.

    Arguments and errors are as there; class folders may be missing where there are images without labels.

    Returns:
        The images of the class folders, and those without labels; of these, all are of the one class ``unlabelled``.
    """
    listing = _listed(Path(path).expanduser(), classes)
    if group_column:
        add_groups(listing, group_column, unlabelled=True)
    given = image_size, channels, skip_bad_images, classes, value_range, first_page_only, cache
    return _read(listing, *given, unlabelled=listing.unlabelled or [])


def _read(
    listing: FolderListing,
    image_size: int | None,
    channels: int | None,
    skip_bad_images: bool,
    classes: Sequence[str] | None,
    value_range: ValueRange | None,
    first_page_only: bool,
    cache: ImageCache | None,
    unlabelled: Sequence[Path] | None = None,
) -> tuple[LabelledImages, LabelledImages]:
    """Return the images of the class folders and the unlabelled ones; None: these are not read."""
    root = listing.root
    if unlabelled is None and not listing.files:
        raise UserError(
            f"no class folders in '{root}': its {len(listing.unlabelled or ())} images have no labels, which"
            " strategy = 'ddsa' alone can use, and at real silos"
        )
    names = tuple(listing.files) if classes is None else tuple(classes)
    positions = {unicodedata.normalize("NFC", name): position for position, name in enumerate(names)}
    for name in listing.files:
        if name not in positions:
            raise UserError(
                f"class folder '{name}' in '{root}' is not a class of this dataset{did_you_mean(name, names)} "
                f"(classes: {', '.join(names)}): rename or remove it"
            )
    paths = [*listing.paths, *(unlabelled or ())]
    labels = np.array([positions[name] for name, files in listing.files.items() for _ in files], dtype=np.int64)
    size, depth = _native_format(paths, image_size, channels, cache)
    shown = value_range or find_value_range(paths, first_page_only=first_page_only, cache=cache)
    try:
        images, good = decode_files(
            paths,
            size,
            depth,
            skip_bad_images=skip_bad_images,
            value_range=shown,
            first_page_only=first_page_only,
            cache=cache,
        )
    except MemoryError as error:
        # Asked for huge images, the sentence would tell another institution how many there are.
        told = (
            f"image-size = {size}: images of {size} x {size} pixels do not fit into memory; give a smaller image-size"
        )
        raise FilesError(f"{len(paths)} images in '{root}': {told}", elsewhere=told) from error
    labels = labels[good[: len(labels)]]
    kept = list(compress(paths, good))

    def of(found: slice, labels: NDArray[np.int64], names: tuple[str, ...]) -> LabelledImages:
        silos, groups = (
            np.array([said[path] for path in kept[found]], dtype=np.str_) if said else None
            for said in (listing.silos, listing.groups)
        )
        return LabelledImages(images[found] if unlabelled else images, labels, names, silos, groups)

    data = of(slice(len(labels)), labels, names)
    counts = data.label_counts()
    for name in listing.files:
        if counts[positions[name]] == 0:
            raise UserError(f"no readable image in class folder '{name}' of '{root}': repair it or remove the folder")
    if said := describe_repeats(data, [path.relative_to(root) for path in kept[: len(data)]]):
        logger.info("%s: at %d x %d pixels, %s", root, size, size, visible(said))
    if not unlabelled:
        return data, LabelledImages(images[:0], labels[:0], (UNLABELLED[0],))
    return data, of(slice(len(data), None), np.zeros(len(kept) - len(data), np.int64), (UNLABELLED[0],))


def image_folder_spec(path: str | Path, image_size: int | None = None) -> ImageSpec:
    """Return format and classes that :func:`read_image_folder` would give ``path``, from the files' headers alone.

    Without class folders, the images in the folder ``unlabelled`` say the format, and there are no classes.

    Raises:
        UserError: ``path`` or its class folders are missing, one is empty, or no file is an image that can be read.
    """
    root = Path(path).expanduser()
    listing = _listed(root)
    paths = listing.paths or listing.unlabelled or []
    headers = _headers(paths)
    if bad := [str(path.relative_to(root)) for path in paths if path not in headers]:
        reason = header_problem(root / bad[0])
        if not headers:
            raise FilesError(
                f"none of the {len(bad)} images in '{root}' can be read, such as {visible(bad[0])} ({reason})",
                elsewhere="none of the images can be read: the silo's log says why",
            )
        logger.warning(
            "%s: %d files cannot be read as images (%s; the first: %s): a run refuses them, unless"
            " skip-bad-images=true",
            *(root, len(bad), visible(named(bad)), reason),
        )
    size, channels = format_of(headers.values(), image_size, None)
    return ImageSpec(channels, size, tuple(listing.files))


def warn_of_damaged_images(path: str | Path, cache: ImageCache | None = None) -> None:
    """Decode every image of a folder whose header can be read, and name in the log those whose rest cannot.

    What :func:`image_folder_spec` names is not named again.

    Args:
        path: as of :func:`read_image_folder`.
        cache: keeps that there are none of them, of large sets, so that the next process need not look.

    Raises:
        UserError: as :func:`image_folder_spec`.
    """
    root = Path(path).expanduser()
    listing = _listed(root)
    paths = [*listing.paths, *(listing.unlabelled or ())]
    bad: dict[str, str] = {}

    def look() -> tuple[float, ...]:
        for file in followed(paths, "checking images:", logger.info):
            try:
                read_picture(file, _LARGEST_NATIVE_SIZE, False)
            except Exception as error:  # decoders raise SyntaxError, struct.error, zlib.error and more
                if read_header(file) is not None:
                    bad[str(file.relative_to(root))] = reason_of(error)
        return (len(bad),)

    if kept_facts(look, cache, len(paths), paths, "damaged images")[0] and not bad:
        look()
    if bad:
        first, reason = next(iter(bad.items()))
        logger.warning(
            "%s: %d images cannot be read (%s; %s: %s): a run refuses them, unless skip-bad-images=true",
            *(root, len(bad), visible(named([*bad])), visible(first), reason),
        )


def load_image_folder(
    path: str | Path,
    image_size: int | None,
    channels: int | None,
    skip_bad_images: bool,
    seed: int,
    classes: Sequence[str] | None = None,
    value_range: ValueRange | None = None,
    first_page_only: bool = False,
    origins: Origins = _NO_ORIGINS,
    cache: ImageCache | None = None,
) -> Folds:
    """Read the folds of ``path``, such as ``train/`` and ``test/``, or, without them, split its images 80/20.

    The split is :func:`~fedsynth.data.origins.split_test`'s. The train fold decides classes, size and
    channels of the test fold; a value range is found over both. What lies where is as
    :func:`~fedsynth.data.folder_origins.list_with_origins` says, other arguments and errors are those of
    :func:`read_image_folder`.
    """
    root = Path(path).expanduser()
    given: dict[str, Any] = {"image_size": image_size, "channels": channels, "classes": classes}
    reading: dict[str, Any] = {
        "skip_bad_images": skip_bad_images,
        "first_page_only": first_page_only,
        "cache": cache,
    }
    if folds := find_folds(root):
        logger.info("%s: %s", root, folds)
        first = _listed(folds.train, classes or (), origins, root)
        second = _listed(folds.test, classes or tuple(first.files), origins, root)
        reading["value_range"] = value_range or find_value_range(
            [*first.paths, *second.paths], first_page_only=first_page_only, cache=cache
        )
        train, _ = _read(first, **given, **reading)
        _, size, _, depth = train.images.shape
        given = {"image_size": size, "channels": depth, "classes": train.classes}
        test, _ = _read(second, **given, **reading)
    else:
        data, _ = _read(_listed(root, classes or (), origins), value_range=value_range, **given, **reading)
        train, test = split_test(data, origins.test_silo, seed)
    if said := describe_shared(train, test, "test images"):
        logger.info("%s: %s", root, said)
    return train, test


def describe_conversion(path: str | Path, image_shape: tuple[int, ...], known: Sequence[str] = ()) -> str:
    """Say how :func:`read_image_folder` changes the stored images to give them ``image_shape`` (H, W, C).

    Only the files' headers are read. Images of other sizes and grey or colour images are counted: ``"3 of 8 images from
    16 x 16 to 8 x 8 pixels, 8 of 8 from colour to grey"``; an empty string if nothing is changed. Names that are
    ``known`` are classes whatever they look like.

    Raises:
        UserError: ``path`` holds no class folders, or a folder cannot be listed.
    """
    root = Path(path).expanduser()
    headers = _headers(list_with_origins(root, origins_in_folders(root, known), known).paths).values()
    height, width, channels = image_shape
    others = Counter(header.size for header in headers if header.size != (width, height))
    recoloured = sum(header.grey != (channels == 1) for header in headers)
    changes = []
    if others:
        (w, h), _ = others.most_common(1)[0]
        origin = f"{w} x {h}" + (" and other sizes" if len(others) > 1 else "")
        changes.append(f"{others.total()} of {len(headers)} images from {origin} to {width} x {height} pixels")
    if recoloured:
        changes.append(f"{recoloured} of {len(headers)} from {'colour to grey' if channels == 1 else 'grey to colour'}")
    return ", ".join(changes)


def _listed(
    root: Path, known: Sequence[str] = (), origins: Origins = _NO_ORIGINS, above: Path | None = None
) -> FolderListing:
    """List the images of ``root`` and say what was found."""
    listing = list_with_origins(root, origins, known, above)
    logger.info("%s: %s", root, listing)
    return listing


def _native_format(
    paths: list[Path], image_size: int | None, channels: int | None, cache: ImageCache | None
) -> tuple[int, int]:
    if image_size is not None and channels is not None:
        return image_size, channels

    def look() -> tuple[float, ...]:
        return format_of(_headers(paths).values(), None, None)

    size, depth = kept_facts(look, cache, len(paths), paths, "format")
    return image_size or int(size), channels or int(depth)


def format_of(headers: Collection[Header], image_size: int | None, channels: int | None) -> tuple[int, int]:
    """Return size and channels of images with these headers; arguments as of :func:`read_image_folder`."""
    sizes = {header.size for header in headers}
    side, height = sizes.pop() if len(sizes) == 1 else (0, 0)
    own = side if side == height and 0 < side <= _LARGEST_NATIVE_SIZE else _DEFAULT_SIZE
    grey = bool(headers) and all(header.grey for header in headers)
    return image_size or own, channels or (1 if grey else 3)


def _headers(paths: list[Path]) -> dict[Path, Header]:
    found = ((path, read_header(path)) for path in followed(paths, "looking at files:", logger.info))
    return {path: header for path, header in found if header is not None}
