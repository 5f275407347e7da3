"""Labelled images in tables of the library ``datasets``: a folder that it saved, or parquet files of the Hub."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsynth.data.arrow_tables import Table, find_tables
from fedsynth.data.folder_entries import class_folder_names
from fedsynth.data.folder_layout import named
from fedsynth.data.image_cache import ImageCache, file_states, read_images
from fedsynth.data.image_files import read_header, read_picture
from fedsynth.data.image_folder import format_of
from fedsynth.data.kept_facts import kept_facts
from fedsynth.data.labelled_images import Folds, LabelledImages
from fedsynth.data.origins import Origins, split_test
from fedsynth.data.pixels import decode_all, to_pixels
from fedsynth.errors import UserError, did_you_mean
from fedsynth.text import visible

_IMAGE_NAMES, _LABEL_NAMES = ("image", "img"), ("label", "labels", "fine_label", "class", "category", "target")


def load_hub_folder(
    folder: Path,
    image_size: int | None,
    channels: int | None,
    skip_bad_images: bool,
    seed: int,
    origins: Origins,
    cache: ImageCache | None = None,
) -> Folds:
    """Read the folds of a dataset in tables; without a test fold the validation fold is one, without that a split.

    The image column is called image or img, or is the only one of images; the label column is called label, labels,
    fine_label, class, category or target, or is the only one with names of classes. Labels without names are sorted.

    Args:
        folder: what ``datasets.save_to_disk`` wrote, or one of parquet files, at any depth.
        image_size: height and width in pixels. None: as of :func:`~fedsynth.data.image_folder.read_image_folder`.
        channels: 1 or 3. None: as there.
        skip_bad_images: leave out rows whose image cannot be read, with a logged warning, instead of refusing.
        seed: decides the split.
        origins: columns that name silo and group of an image.
        cache: receives large sets, decoded; None: they are held in memory.

    Raises:
        UserError: no tables, several datasets, no such column, a row without a label or a name, or unreadable images.
    """
    tables = find_tables(folder)
    held_out = tables.get("test") or tables.get("validation")
    parts = [tables["train"], *([held_out] if held_out else [])]
    for table in parts[1:]:
        if table.schema.names != parts[0].schema.names:
            raise UserError(f"'{folder}': the folds have different columns: point at one of them")
    image, label = _image_column(parts[0]), _label_column(parts[0])
    classes, labels = _labelled(parts, label)
    size, depth = image_size or 0, channels or 0
    if not (size and depth):
        files = [file for table in parts for file in table.files]
        look = partial(_own_format, parts, image)
        own_size, own_depth = kept_facts(look, cache, sum(map(len, labels)), files, "format", image)
        size, depth = size or int(own_size), depth or int(own_depth)
    folds = []
    for table, numbers in zip(parts, labels, strict=True):
        images, good = _decoded(table, image, (len(numbers), size, size, depth), skip_bad_images, cache)
        silos = _names(table, "silo-column", origins.silo_column)[good] if origins.natural else None
        groups = _names(table, "group-column", origins.group_column)[good] if origins.group_column else None
        folds.append(LabelledImages(images, numbers[good], classes, silos, groups))
    return (folds[0], folds[1]) if held_out else split_test(folds[0], origins.test_silo, seed)


def _image_column(table: Table) -> str:
    import pyarrow.types as types  # slow to import

    def holds_images(kind: Any) -> bool:
        if types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0 and holds_images(kind.field("bytes").type)
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    return _chosen("images", [field.name for field in table.schema if holds_images(field.type)], _IMAGE_NAMES, table)


def _label_column(table: Table) -> str:
    named_classes = [*table.class_names]
    known = [name for name in _LABEL_NAMES if name in table.schema.names]
    return _chosen("labels", known[:1] or named_classes, (), table)


def _chosen(what: str, candidates: list[str], preferred: tuple[str, ...], table: Table) -> str:
    chosen = [name for name in preferred if name in candidates][:1] or candidates
    if len(chosen) != 1:
        found = visible(named(table.schema.names))
        raise UserError(
            f"'{table.files[0].parent}': {'several columns' if chosen else 'no column'} of {what} (columns: {found});"
            f" rename the one to use to '{(preferred or _LABEL_NAMES)[0]}'"
        )
    return chosen[0]


def _labelled(parts: Sequence[Table], column: str) -> tuple[tuple[str, ...], list[NDArray[np.int64]]]:
    """Return the names of the classes and the labels of every table."""
    values = [table.column(column) for table in parts]
    names = parts[0].class_names.get(column, ())
    if any(table.class_names.get(column, ()) != names for table in parts):
        raise UserError(f"column '{column}': the folds name different classes: save them as one dataset")
    for table, found in zip(parts, values, strict=True):
        # -1 stands for a label that its authors keep to themselves.
        unlabelled = sum(value is None or (value == -1 and bool(names)) for value in found)
        if unlabelled or not found:
            said = f"'{table.files[0].parent}', column '{column}': {unlabelled} of {len(found)} rows have no label"
            raise UserError(f"{said}: leave such rows, or the fold, out")
        if not all(isinstance(value, str | int) for value in found):
            raise UserError(f"column '{column}': a label must be a name or a whole number, one for each image")
    if names:
        positions: dict[Any, int] = {number: number for number in range(len(names))}
    else:
        distinct = {value for found in values for value in found}
        ordered = sorted(distinct, key=lambda value: (isinstance(value, str), value))
        names, positions = tuple(map(str, ordered)), {value: number for number, value in enumerate(ordered)}
    if unknown := [value for found in values for value in found if value not in positions]:
        raise UserError(
            f"column '{column}': {unknown[0]!r} is none of the {len(names)} classes: save the dataset again"
        )
    return class_folder_names(names), [np.array([positions[value] for value in found], np.int64) for found in values]


def _names(table: Table, key: str, column: str) -> NDArray[np.str_]:
    """The silo or the group of every row."""
    columns = table.schema.names
    if column not in columns:
        found = f"{did_you_mean(column, columns)} (columns: {visible(named(columns))})"
        raise UserError(f"{key} = '{column}': '{table.files[0].parent}' has no such column{found}")
    classes = table.class_names.get(column)
    values = table.column(column)
    if lost := sum(not isinstance(value, str | int) or value == "" for value in values):
        raise UserError(f"{key} = '{column}': {lost} of {len(values)} rows have no name or number there: fill them in")
    texts = [classes[value] if classes and value in range(len(classes)) else str(value) for value in values]
    return np.array([text.strip() for text in texts], dtype=np.str_)


def _own_format(parts: Sequence[Table], column: str) -> tuple[int, int]:
    """Size and channels of the images as they are stored."""
    headers = (read_header(content) for table in parts for _, content in _contents(table, column) if content)
    return format_of([header for header in headers if header is not None], None, None)


def _decoded(
    table: Table, column: str, shape: tuple[int, int, int, int], skip_bad_images: bool, cache: ImageCache | None
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    _, size, _, channels = shape

    def read(row: tuple[str, bytes | None]) -> NDArray[np.uint8]:
        if row[1] is None:
            raise ValueError("a path instead of an image: load the dataset and save it again, which takes the image in")
        return to_pixels(read_picture(row[1], size, False), size, channels)

    def fill(out: NDArray[np.uint8]) -> NDArray[np.bool_]:
        return decode_all(out, _contents(table, column), read, itemgetter(0), skip_bad_images)

    return read_images(shape, fill, cache, lambda: [file_states(table.files), column, skip_bad_images])


def _contents(table: Table, column: str) -> Iterator[tuple[str, bytes | None]]:
    """Yield where an image stands and its file's content; None where only a path stands, which is not followed."""
    for where, value in table.rows(column):
        yield where, value.get("bytes") if isinstance(value, dict) else value
