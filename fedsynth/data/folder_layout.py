"""Which folders are classes and which are folds, so that a fold, or a folder too high, never becomes a class."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedsynth.data.folder_entries import entries, is_system_name
from fedsynth.data.image_formats import IMAGE_SUFFIXES
from fedsynth.errors import UserError

_ROLES = {
    **dict.fromkeys(("train", "training", "trainset", "trn"), "train"),
    **dict.fromkeys(("test", "testing", "testset", "tst", "eval", "evaluation", "holdout"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "valset", "dev"), "validation"),
}
_CROSS_VALIDATION = re.compile(r"(fold|split|cv)[\s_.-]*\d+", re.IGNORECASE)
_BETWEEN_WORDS = re.compile(r"[\s_.-]+|(?<=[a-z])(?=[A-Z])")
_SHOWN = 5


@dataclass(frozen=True)
class FoldFolders:
    """The folders of a dataset's folds, as they were found.

    Attributes:
        train: the train fold, such as ``train``, ``Training``, ``seg_train``.
        test: the test fold; where there is none, the validation fold.
        beside: names of the other folders there, which are not read.
    """

    train: Path
    test: Path
    beside: tuple[str, ...]

    def __str__(self) -> str:
        unread = f"; not read beside them: {named(self.beside)}" if self.beside else ""
        return f"folds: {self.train.name} (training), {self.test.name} (test){unread}"


def find_folds(root: Path) -> FoldFolders | None:
    """Return the folders of train and test fold in ``root``, in whatever case and common word; None without both.

    Raises:
        UserError: two folders are train folds, or test folds, alike; or ``root`` cannot be listed.
    """
    if not root.is_dir():
        return None
    names = visible_folders(root)
    roles = {name: role for name in names if (role := _role(name)) is not None}
    pairs = []
    for rest in dict.fromkeys(rest for _, rest in roles.values()):
        train, test, validation = (
            [name for name, role in roles.items() if role == (wanted, rest)]
            for wanted in ("train", "test", "validation")
        )
        held_out = test or validation
        if train and held_out:
            if len(train) > 1 or len(held_out) > 1:
                raise UserError(
                    f"'{root}' holds more than one fold of a kind: {named([*train, *held_out])}: leave one folder for"
                    " training and one for testing"
                )
            pairs.append((train[0], held_out[0]))
    if len(pairs) > 1:
        said = "; ".join(f"{train} and {test}" for train, test in pairs)
        raise UserError(f"'{root}' holds several pairs of folds ({said}): leave one, or give each a folder of its own")
    if not pairs:
        return None
    train_name, test_name = pairs[0]
    beside = tuple(name for name in names if name not in pairs[0])
    return FoldFolders(root / train_name, root / test_name, beside)


def refuse_other_layouts(root: Path, names: Sequence[str]) -> None:
    """Refuse folders that are no classes, although they stand where classes are looked for.

    Args:
        root: the folder that is to hold the class folders.
        names: of the folders in it.

    Raises:
        UserError: they are folds, parts of a cross-validation, or one folder that holds the class folders.
    """
    if folds := find_folds(root):
        raise UserError(
            f"'{root}' holds the folds {named([folds.train.name, folds.test.name])} instead of class folders: point at"
            f" one of them, such as '{folds.train}'"
        )
    if len(names) > 1 and all(map(_CROSS_VALIDATION.fullmatch, names)):
        raise UserError(
            f"'{root}' holds the parts of a cross-validation ({named(names)}) instead of class folders: point at one,"
            " or join their class folders in folders train/ and test/"
        )
    if all(map(_is_fold_word, names)):
        raise UserError(
            f"'{root}' holds {named(names)} instead of class folders: a dataset needs both train/ and test/ there; "
            "otherwise point at the folder that holds the class folders"
        )
    if len(names) == 1 and (inner := only_folders(root / names[0])):
        raise UserError(
            f"'{root}' holds one folder, '{names[0]}', which holds folders only ({named(inner)}): if these are the"
            f" classes, point at '{root / names[0]}'; if '{names[0]}' is the only class, move its images out of them"
        )
    for name in names:
        if _is_fold_among(name, names) and (inner := only_folders(root / name)):
            raise UserError(
                f"'{root / name}' is named like a fold and holds folders only ({named(inner)}): if these are the"
                " classes, point at it; a dataset of two folds has a training and a test folder"
            )


def visible_folders(root: Path) -> list[str]:
    """Return the sorted names of the folders in ``root``, links to folders too, without hidden and system folders.

    Raises:
        UserError: ``root`` cannot be listed.
    """
    return [entry.name for entry in entries(root) if not is_system_name(entry.name) and _is_folder(entry)]


def fold_role(name: str) -> str:
    """Return ``train``, ``test`` or ``validation``, whichever exactly one word of a name speaks of; empty for none."""
    role = _role(name)
    return "" if role is None else role[0]


def named(names: Sequence[str]) -> str:
    """List names, the first five of many."""
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def _role(name: str) -> tuple[str, tuple[str, ...]] | None:
    """Which fold a name speaks of, and its other words; None unless exactly one word speaks of one."""
    words = _words(name)
    found = [word for word in words if word in _ROLES]
    if len(found) != 1:
        return None
    return _ROLES[found[0]], tuple(word for word in words if word not in _ROLES)


def _is_fold_word(name: str) -> bool:
    role = _role(name)
    return role is not None and not role[1]


def _is_fold_among(name: str, names: Sequence[str]) -> bool:
    """Whether a name speaks of a fold, in words that the other names share: ``seg_train`` beside ``seg_pred``."""
    role = _role(name)
    return role is not None and all(set(role[1]) <= set(_words(other)) for other in names)


def _words(name: str) -> list[str]:
    return [word.casefold() for word in _BETWEEN_WORDS.split(name) if word]


def only_folders(folder: Path) -> list[str]:
    """Return the names of the folders in ``folder``, unless images lie in it too."""
    inside = [entry for entry in entries(folder) if not is_system_name(entry.name)]
    if any(Path(entry.name).suffix.lower() in IMAGE_SUFFIXES and not _is_folder(entry) for entry in inside):
        return []
    return [entry.name for entry in inside if _is_folder(entry)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False
