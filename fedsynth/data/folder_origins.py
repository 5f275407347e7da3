"""The images of a dataset in folders, with the silo and the group of each: from folders, or from a table."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection
from pathlib import Path

from fedsynth.data.folder_entries import class_folder_names, entries, is_system_name, utf8_name
from fedsynth.data.folder_layout import find_folds, named, only_folders, visible_folders
from fedsynth.data.folder_listing import FolderListing, in_order, list_images
from fedsynth.data.image_formats import IMAGE_SUFFIXES
from fedsynth.data.metadata import LABEL, Metadata, read_metadata
from fedsynth.data.origins import Origins
from fedsynth.errors import UserError
from fedsynth.spec import look_alikes
from fedsynth.text import visible

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


def silos_in_folders(root: Path, origins: Origins) -> set[str]:
    """Return the names of the silos with training images in a dataset's folders, without decoding any.

    Raises:
        UserError: as of :func:`list_with_origins`.
    """
    folds = find_folds(root)
    listing = list_with_origins(folds.train if folds else root, origins, above=root)
    return {*listing.silos.values()} - {origins.test_silo}


def origins_in_folders(root: str | Path, classes: Collection[str]) -> Origins:
    """Return natural origins where the folders say a silo above the class, as far as known class names tell.

    Args:
        root: the folder of a dataset, with folds or without.
        classes: names of class folders. In ``<silo>/<class>/<image>`` none is directly in ``root`` (or in a fold), and
            some are in each of the folders there, which hold nothing else.

    Raises:
        UserError: a folder cannot be listed.
    """
    path = Path(root).expanduser()
    folds = find_folds(path)
    above = folds.train if folds else path
    known = {unicodedata.normalize("NFC", name) for name in classes}

    def of_classes(names: Collection[str]) -> bool:
        return not known.isdisjoint(unicodedata.normalize("NFC", name) for name in names)

    names = visible_folders(above) if above.is_dir() else []
    natural = bool(names) and not of_classes(names) and all(of_classes(only_folders(above / name)) for name in names)
    return Origins(natural=natural)


def add_groups(listing: FolderListing, group_column: str, unlabelled: bool = False) -> None:
    """Say of every image of class folders, and of those without labels if wanted, which group a table puts it into.

    Raises:
        UserError: there is no table, or it lacks the column or a row.
    """
    paths = [*listing.paths, *(listing.unlabelled or ())] if unlabelled else listing.paths
    listing.groups = read_metadata([listing.root], [group_column]).values(group_column, paths)


def _list_silos(root: Path) -> FolderListing:
    names = visible_folders(root) if root.is_dir() else []
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
    class_folder_names(listing.files)  # which refuses too many
    listing.files = dict(sorted(listing.files.items()))
    return listing


def _listed_in(table: Metadata, root: Path) -> FolderListing:
    """The images below ``root`` that a table has, by its labels."""
    listing = FolderListing(root)
    found: dict[str, list[Path]] = {}
    for name, row in table.rows.items():
        path = table.path.parent / name
        if not path.exists():  # a name may be stored in another form of Unicode than the table's key
            path = table.path.parent / table.names[name]
        if not path.is_relative_to(root):
            continue
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            raise UserError(f"'{table.path}': '{visible(name)}' is no image that can be read: remove the row")
        found.setdefault(row[LABEL], []).append(path)
    if not found:
        raise UserError(f"'{table.path}' has no row for an image in '{root}'")
    classes = dict(zip(class_folder_names(found), found.values(), strict=True))
    listing.files = {name: sorted(files, key=in_order(root)) for name, files in sorted(classes.items())}
    return listing


def _silo_of(path: Path, root: Path) -> str:
    first, *rest = path.relative_to(root).parts
    if not rest:
        raise UserError(
            f"partition = 'natural': '{path}' lies in no silo's folder: move it into one, or give silo-column"
        )
    return unicodedata.normalize("NFC", utf8_name(root / first))
