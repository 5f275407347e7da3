"""What lies in a folder of class folders: the images of every class, and what is not read, and why."""

from __future__ import annotations

import logging
import os
import stat
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from fedsynth.data.folder_entries import entries, is_system_name, shown, utf8_name
from fedsynth.data.folder_layout import named, refuse_other_layouts
from fedsynth.data.image_formats import IMAGE_SUFFIXES
from fedsynth.errors import UserError
from fedsynth.spec import MAX_CLASSES, MAX_NAME_LENGTH
from fedsynth.text import visible

LAYOUT = "one folder per class, each with that class's images (<class>/<image>.png, .jpg, ...)"
UNLABELLED = ("unlabelled", "unlabeled")
"""Names, in any case, of a folder beside the class folders whose images have no labels: it is no class."""
_SPECIAL = {stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}
_NO_SUFFIX = "without suffix"
_KINDS_SHOWN = 6
_SECONDS = 5.0

logger = logging.getLogger("fedsynth")


@dataclass
class FolderListing:
    """The images below a folder of class folders, and what else lies there.

    Attributes:
        root: the folder.
        files: class name -> its images, at any depth. Classes are sorted by name, images as ``os.walk`` gives them
            from sorted names: those of a folder before those of its subfolders.
        skipped: what belongs to the system or a program, by name: ``@eaDir``, ``._*``; folders are not looked into.
        other_suffixes: files that are no images, by suffix.
        doubles: links and files that lead to what is listed already, each with what it leads to.
        special: FIFOs, sockets and devices, which are never opened.
        remarks: what else a reader should know.
        silos: image -> name of its silo, where that is given.
        groups: image -> name of the group, such as a patient, where that is asked for.
        unlabelled: images without labels, in the folder for them; None: there is no such folder.
    """

    root: Path
    files: dict[str, list[Path]] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)
    other_suffixes: Counter[str] = field(default_factory=Counter)
    doubles: list[str] = field(default_factory=list)
    special: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    silos: dict[Path, str] = field(default_factory=dict)
    groups: dict[Path, str] = field(default_factory=dict)
    unlabelled: list[Path] | None = None

    @property
    def paths(self) -> list[Path]:
        """All images, class by class."""
        return [path for files in self.files.values() for path in files]

    def __str__(self) -> str:
        """Say it in one line: ``images: 812 files in 4 classes; skipped: 812 @eaDir; not read: 2 .txt, 1 .psd``."""
        parts = [f"images: {sum(map(len, self.files.values()))} files in {len(self.files)} classes"]
        if self.unlabelled is not None:
            parts.append(
                f"no class: {len(self.unlabelled)} unlabelled files, read where labels are few and not elsewhere"
            )
        if self.skipped:
            parts.append(f"skipped: {_counted(self.skipped)}")
        if self.other_suffixes:
            parts.append(f"not read: {_counted(self.other_suffixes)}")
        if self.doubles:
            parts.append(f"linked more than once: {len(self.doubles)}, read once ({named(self.doubles)})")
        if self.special:
            parts.append(f"not opened: {named(self.special)}")
        return visible("; ".join([*parts, *self.remarks]))


def list_images(root: Path, known: Collection[str] = ()) -> FolderListing:
    """List the images below the class folders of ``root``.

    Class names are the folders' in Unicode's composed form (NFC), which most systems write. A file or folder that can
    be reached twice, over links or a loop, counts once, where it really lies before where a link stands. A folder
    ``unlabelled`` is no class; where it holds images, there may be no classes beside it.

    Args:
        root: the folder that holds the class folders.
        known: names that are classes whatever they look like.

    Raises:
        UserError: ``root`` holds no class folders but something else, such as folds; a class folder is empty, or one
            folder twice; a folder cannot be listed; a name is not UTF-8, or none that silos may send.
    """
    folders, unlabelled = _class_folders(root, known)
    try:
        listing = _walked(root, folders, unlabelled)
    except OSError as error:
        raise UserError(f"'{error.filename}': {error.strerror}, while '{root}' was listed: try again") from error
    if not listing.files and not listing.unlabelled:
        raise UserError(
            f"no class folders in '{root}', and no images in its folder 'unlabelled': it must hold {LAYOUT}"
        )
    _refuse_empty(listing)
    _refuse_loose(listing)
    if lonely := [name for name, files in listing.files.items() if len(files) == 1]:
        listing.remarks.append(f"a single image, which is never held out: {named(lonely)}")
    if shared := _shared_subfolders(listing):
        listing.remarks.append(f"every class folder holds the same folders ({named(shared)}), read as part of it")
    return listing


def _walked(root: Path, folders: dict[str, Path], unlabelled: Path | None) -> FolderListing:
    listing = FolderListing(root)
    listing.skipped.update(_skipped_as(entry.name) for entry in entries(root) if is_system_name(entry.name))
    # Last, so that what a class holds too is the class's; no class has an empty name.
    every = folders if unlabelled is None else {**folders, "": unlabelled}
    walk = _Walk(listing, every)
    for name, folder in every.items():
        walk.follow(name, folder)
    walk.follow_links()
    for files in listing.files.values():
        files.sort(key=in_order(root))
    listing.unlabelled = listing.files.pop("", None)
    return listing


def _class_folders(root: Path, known: Collection[str]) -> tuple[dict[str, Path], Path | None]:
    """Return the class folders by name, and the folder of images without labels, if there is one."""
    if not root.is_dir():
        found = " (it is a file)" if root.exists() else ""
        raise UserError(
            f"there is no folder '{root}'{found}: point data-root (or data-path) at a folder that holds {LAYOUT}"
        )
    utf8_name(root)
    inside = [entry for entry in entries(root) if not is_system_name(entry.name)]
    if broken := [entry.name for entry in inside if _leads_nowhere(entry)]:
        raise UserError(f"links in {shown(root)} lead nowhere: {named(broken)}: repair or remove them")
    given = {unicodedata.normalize("NFC", name) for name in known}
    every = [Path(entry.path) for entry in inside if entry.is_dir()]
    without = [path for path in every if path.name.casefold() in UNLABELLED and path.name not in given]
    if len(without) > 1:
        raise UserError(f"'{root}' holds {named([path.name for path in without])}, which mean the same: join them")
    paths = [path for path in every if path not in without]
    if not paths and not without:
        loose = sum(Path(entry.name).suffix.lower() in IMAGE_SUFFIXES for entry in inside)
        found = f" ({loose} images lie directly in it; is it a class folder? Then point at the one above)" * bool(loose)
        raise UserError(f"no class folders in '{root}'{found}: it must hold {LAYOUT}")
    names = [unicodedata.normalize("NFC", utf8_name(path)) for path in paths]
    if not set(names) <= given:
        refuse_other_layouts(root, [path.name for path in paths])
    _check_names(root, names)
    folders = {name: path for name, path in sorted(zip(names, paths, strict=True))}
    return folders, without[0] if without else None


def _check_names(root: Path, names: list[str]) -> None:
    if len(names) > MAX_CLASSES:
        raise UserError(f"'{root}' holds {len(names)} class folders: at most {MAX_CLASSES}; join some of them")
    for name, count in Counter(names).items():
        if count > 1:
            raise UserError(
                f"'{root}' holds {count} folders of the name '{name}', whose accents are stored differently (Unicode"
                " NFC and NFD): join them"
            )
        if len(name) > MAX_NAME_LENGTH or not name.isprintable():
            raise UserError(
                f"class folder {shown(root / name)}: rename it, to at most {MAX_NAME_LENGTH} characters that all print"
            )


class _Walk:
    """Takes in one class folder after the other, and the links last."""

    def __init__(self, listing: FolderListing, folders: dict[str, Path]) -> None:
        self.listing = listing
        self._root = listing.root
        self._seen: dict[tuple[int, int], Path] = {}
        self._links: list[tuple[str, Path]] = []
        self._said = time.monotonic()
        for name, path in folders.items():
            listing.files[name] = []
            if (other := self._first(path, path.stat())) != path:
                raise UserError(
                    f"class folders '{other.name}' and '{path.name}' of '{self._root}' are one folder: remove the link"
                )
        # A link back up would bring in whatever lies beside the classes.
        real = self._root.resolve()
        for parent in (real, *real.parents):
            if (other := self._first(parent, parent.stat())) in folders.values():
                raise UserError(f"class folder '{other}' leads back up to '{parent}': remove the link")
        for parent in sorted({parent for path in folders.values() for parent in path.resolve().parents}):
            self._first(parent, parent.stat())

    def follow(self, name: str, folder: Path) -> None:
        """Take in what lies below ``folder`` as images of class ``name``; put links aside."""
        waiting = [folder]
        while waiting:
            current = waiting.pop()
            for entry in entries(current):
                path = Path(entry.path)
                if is_system_name(entry.name):
                    self.listing.skipped[_skipped_as(entry.name)] += 1
                elif entry.is_symlink():
                    self._links.append((name, path))
                else:
                    waiting += self._place(name, path, entry.stat(follow_symlinks=False))

    def follow_links(self) -> None:
        """Take in what the links lead to, those found on the way too."""
        while self._links:
            name, path = self._links.pop(0)
            try:
                status = path.stat()
            except OSError:  # it leads nowhere: whoever reads the images says so by name
                self._file(name, path)
                continue
            for folder in self._place(name, path, status):
                self.follow(name, folder)

    def _place(self, name: str, path: Path, status: os.stat_result) -> list[Path]:
        """Put an entry where it belongs; return it if it is a folder to go into."""
        kind = stat.S_IFMT(status.st_mode)
        if kind not in (stat.S_IFDIR, stat.S_IFREG):
            self.listing.special.append(f"{path.relative_to(self._root)} ({_SPECIAL.get(kind, 'no file')})")
            return []
        if kind == stat.S_IFREG and path.suffix.lower() not in IMAGE_SUFFIXES:
            self._file(name, path)
            return []
        utf8_name(path)
        if (first := self._first(path, status)) != path:
            self.listing.doubles.append(f"{path.relative_to(self._root)} is {_relative(first, self._root)}")
            return []
        if kind == stat.S_IFDIR:
            return [path]
        self._file(name, path)
        return []

    def _file(self, name: str, path: Path) -> None:
        if path.suffix.lower() in IMAGE_SUFFIXES:
            self.listing.files[name].append(path)
        else:
            self.listing.other_suffixes[path.suffix.lower() or _NO_SUFFIX] += 1
        self._tell()

    def _first(self, path: Path, status: os.stat_result) -> Path:
        """The path under which a file or folder was met first; some file systems number nothing."""
        return self._seen.setdefault((status.st_dev, status.st_ino), path) if status.st_ino else path

    def _tell(self) -> None:
        if time.monotonic() - self._said >= _SECONDS:
            self._said = time.monotonic()
            logger.info("listing '%s': %d images so far", self._root, sum(map(len, self.listing.files.values())))


def in_order(root: Path) -> Callable[[Path], list[tuple[bool, str]]]:
    """Return the key that sorts files below ``root``: those of a folder before those of its subfolders."""

    def key(path: Path) -> list[tuple[bool, str]]:
        *folders, name = path.relative_to(root).parts
        return [*((True, folder) for folder in folders), (False, name)]

    return key


def _relative(path: Path, root: Path) -> Path:
    return path.relative_to(root) if path.is_relative_to(root) else path


def _leads_nowhere(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)


def _looks_like_image(entry: os.DirEntry[str]) -> bool:
    return not entry.is_dir() and Path(entry.name).suffix.lower() in IMAGE_SUFFIXES


def _skipped_as(name: str) -> str:
    if name.startswith("._"):
        return "._*"
    return "hidden files" if name.startswith(".") and "." in name[1:] else name


def _counted(counter: Counter[str]) -> str:
    kinds = sorted(counter.items(), key=lambda item: (-item[1], item[0] == _NO_SUFFIX, item[0]))
    rest = f" and {len(kinds) - _KINDS_SHOWN} other kinds" if len(kinds) > _KINDS_SHOWN else ""
    return ", ".join(f"{count} {kind}" for kind, count in kinds[:_KINDS_SHOWN]) + rest


def _refuse_empty(listing: FolderListing) -> None:
    empty = [name for name, files in listing.files.items() if not files]
    if not empty:
        return
    seen = f" (other files: {_counted(listing.other_suffixes)})" if listing.other_suffixes else ""
    if mine := [said for said in listing.doubles if said.startswith(tuple(f"{name}/" for name in empty))]:
        seen += f" (images that another class holds: {named(mine)})"
    raise UserError(
        f"no images in class folder{'s' if len(empty) > 1 else ''} {named([repr(name) for name in empty])} of"
        f" '{listing.root}'{seen}: put images there (.png, .jpg, ...) or remove the folder"
    )


def _refuse_loose(listing: FolderListing) -> None:
    """Refuse a class folder that was pointed at instead of the one above; say where fewer images lie beside."""
    loose = sum(_looks_like_image(entry) for entry in entries(listing.root) if not is_system_name(entry.name))
    inside = len(listing.paths) + len(listing.unlabelled or ())
    if loose > inside:
        raise UserError(
            f"{loose} images lie directly in '{listing.root}', {inside} in its folders ({named([*listing.files])}): if"
            " it is a class folder, point at the one above; otherwise move its images into class folders"
        )
    if loose:
        listing.remarks.append(f"not read: {loose} images that lie in no class folder")


def _shared_subfolders(listing: FolderListing) -> list[str]:
    """The folders that every class folder holds, if all its images lie in them."""
    found = None
    for files in listing.files.values():
        # Images that lie in no such folder come first.
        if len(files[0].relative_to(listing.root).parts) == 2:
            return []
        folders = {path.relative_to(listing.root).parts[1] for path in files}
        if found is not None and folders != found:
            return []
        found = folders
    return sorted(found or ()) if len(listing.files) > 1 else []
