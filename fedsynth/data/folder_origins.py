"""The images of a dataset in folders, with the silo and the group of each: from folders, or from a table."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Sequence
from pathlib import Path

from fedsynth.data.folder_entries import entries, is_system_name, utf8_name
from fedsynth.data.folder_layout import find_folds, named, visible_folders
from fedsynth.data.folder_listing import FolderListing, in_order, list_images
from fedsynth.data.image_formats import IMAGE_SUFFIXES
from fedsynth.data.metadata import LABEL, Metadata, read_metadata
from fedsynth.data.origins import Origins
from fedsynth.errors import UserError
from fedsynth.spec import MAX_CLASSES, MAX_NAME_LENGTH, look_alikes
from fedsynth.text import printable, visible

_SILO_LAYOUT = "<silo>/<class>/<image>"


def list_with_origins(
    root: Path, origins: Origins, known: Collection[str] = (), above: Path | None = None
) -> FolderListing:
    """List the images of a dataset, or of one of its folds, and say of each what ``origins`` wants.

    Classes are a table's ``label`` column; without one, the folders in ``root`` or, of natural silos without a
    ``silo_column``, the folders in those of the silos.

    Args:
        root: the folder.
        origins: what is wanted. The table is read only for the name of a column.
        known: as of :func:`~fedsynth.data.folder_listing.list_images`.
        above: folder that holds the table, if ``root`` does not.

    Raises:
        UserError: the folders cannot be listed or have another layout, or the table lacks what is wanted.
    """
    columns = [column for column in (origins.silo_column, origins.group_column) if column]
    table = read_metadata([root, *([above] if above else [])], columns) if columns else None
    by_folder = origins.natural and not origins.silo_column
    if table is not None and table.says_labels:
        listing = _listed_in(table, root)
    elif by_folder:
        listing = _list_silos(root)
    else:
        listing = list_images(root, known)
    if by_folder:
        listing.silos = {path: _silo_of(path, root) for path in listing.paths}
    if table is not None and origins.silo_column:
        listing.silos = table.values(origins.silo_column, listing.paths)
    if table is not None and origins.group_column:
        listing.groups = table.values(origins.group_column, listing.paths)
    return listing


def add_groups(listing: FolderListing, group_column: str) -> None:
    """Say of every image of class folders which group a table beside them puts it into.

    Raises:
        UserError: there is no table, or it lacks the column or a row.
    """
    listing.groups = read_metadata([listing.root], [group_column]).values(group_column, listing.paths)


def _list_silos(root: Path) -> FolderListing:
    names = visible_folders(root) if root.is_dir() else []
    if folds := find_folds(root):
        names = [folds.train.name, folds.test.name]
        raise UserError(f"'{root}' holds the folds {named(names)} where silos are looked for: {_SILO_LAYOUT}")
    for name in names:
        inside = [entry for entry in entries(root / name) if not is_system_name(entry.name)]
        if not any(entry.is_dir() for entry in inside):
            images = sum(Path(entry.name).suffix.lower() in IMAGE_SUFFIXES for entry in inside)
            raise UserError(
                f"partition = 'natural': the folder '{root / name}' holds {images} images and no class folders: the"
                f" layout is {_SILO_LAYOUT}; if your folders are classes, name the silos in a table and give"
                " silo-column"
            )
    if not names:
        raise UserError(f"partition = 'natural': there are no folders in '{root}': the layout is {_SILO_LAYOUT}")
    return _joined(root, {name: list_images(root / name) for name in names})


def _joined(root: Path, silos: dict[str, FolderListing]) -> FolderListing:
    listing = FolderListing(root)
    for name, own in silos.items():
        for class_name, files in own.files.items():
            listing.files.setdefault(class_name, []).extend(files)
        listing.skipped.update(own.skipped)
        listing.other_suffixes.update(own.other_suffixes)
        listing.doubles += [f"{name}: {said}" for said in own.doubles]
        listing.special += [f"{name}: {said}" for said in own.special]
        listing.remarks += [f"{name}: {said}" for said in own.remarks]
    if alike := look_alikes(listing.files):
        raise UserError(
            f"class folders {named(list(map(repr, alike[0])))} of the silos in '{root}' are probably the same: give"
            " them one name"
        )
    _check_classes(f"'{root}'", [*listing.files])
    listing.files = dict(sorted(listing.files.items()))
    return listing


def _listed_in(table: Metadata, root: Path) -> FolderListing:
    """The images below ``root`` that a table has, by its labels."""
    listing = FolderListing(root)
    found: dict[str, list[Path]] = {}
    for name, row in table.rows.items():
        path = table.path.parent / name
        if not path.is_relative_to(root):
            continue
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            raise UserError(f"'{table.path}': '{visible(name)}' is no image that can be read: remove the row")
        found.setdefault(row[LABEL], []).append(path)
    if not found:
        raise UserError(f"'{table.path}' has no row for an image in '{root}'")
    _check_classes(f"column '{LABEL}' of '{table.path}'", [*found])
    listing.files = {name: sorted(files, key=in_order(root)) for name, files in sorted(found.items())}
    return listing


def _check_classes(where: str, names: Sequence[str]) -> None:
    if len(names) > MAX_CLASSES:
        raise UserError(f"{where} has {len(names)} classes: at most {MAX_CLASSES}; join some of them")
    for name in names:
        # Classes become folders.
        if len(name) > MAX_NAME_LENGTH or not name.isprintable() or {"/", "\\"} & {*name} or name.startswith("."):
            raise UserError(
                f"{where}: class '{printable(name, MAX_NAME_LENGTH)}': rename it, to at most {MAX_NAME_LENGTH}"
                " characters that all print, without slashes and without a dot in front"
            )


def _silo_of(path: Path, root: Path) -> str:
    first, *rest = path.relative_to(root).parts
    if not rest:
        raise UserError(
            f"partition = 'natural': '{path}' lies in no silo's folder: move it into one, or give silo-column"
        )
    return unicodedata.normalize("NFC", utf8_name(root / first))
