"""Tables of images in Arrow or parquet files, read column by column and piece by piece, without a network."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsynth.data.folder_layout import fold_role, named
from fedsynth.errors import UserError
from fedsynth.files import read_text
from fedsynth.text import visible

if TYPE_CHECKING:
    import pyarrow

_ROWS = 64
"""Rows read at once: a row may hold a photograph."""


@dataclass(frozen=True)
class Table:
    """Files of one fold.

    Attributes:
        files: ``.parquet`` files, or ``.arrow`` files as the library ``datasets`` writes them, with the same columns.
    """

    files: tuple[Path, ...]

    @cached_property
    def schema(self) -> pyarrow.Schema:
        """Names and types of the columns.

        Raises:
            UserError: a file cannot be read, or has other columns than the first.
        """
        first, *others = [_schema(path) for path in self.files]
        for path, other in zip(self.files[1:], others, strict=True):
            if not other.equals(first):
                raise UserError(f"'{path}' has other columns than '{self.files[0]}': leave files of one table only")
        return first

    @cached_property
    def class_names(self) -> Mapping[str, tuple[str, ...]]:
        """Names of the values of the columns that the library ``datasets`` calls ``ClassLabel``."""
        try:
            features = json.loads((self.schema.metadata or {})[b"huggingface"])["info"]["features"]
            return {
                column: tuple(map(str, feature["names"]))
                for column, feature in features.items()
                if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
            }
        except (KeyError, TypeError, ValueError):
            return {}

    def column(self, name: str) -> list[Any]:
        """Return all values of a column."""
        return [value for _, value in self.rows(name)]

    def rows(self, name: str) -> Iterator[tuple[str, Any]]:
        """Yield where a row stands, for errors, and its value in a column.

        Raises:
            UserError: a file cannot be read.
        """
        for path in self.files:
            number = 0
            with _readable(path):
                for piece in _pieces(path, name):
                    for value in piece:
                        number += 1
                        yield f"row {number} of {path}", value.as_py()


def find_tables(folder: Path) -> dict[str, Table]:
    """Find the folds in a folder that the library ``datasets`` saved, or of parquet files as the Hugging Face Hub has.

    Returns:
        Tables by ``train``, ``test`` and ``validation``; one under ``train`` alone if nothing speaks of folds.

    Raises:
        UserError: there are none, or several data sets.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder '{folder}': give the folder of one saved dataset, or of parquet files")
    if (folder / "dataset_dict.json").is_file():
        names = [name for name in _json(folder / "dataset_dict.json").get("splits", []) if isinstance(name, str)]
        roles = {name: fold_role(name) or "" for name in names if _is_plain(name)}
        homes = {role: {name} for name, role in roles.items() if role}
        found = {role: _saved(folder / name) for name, role in roles.items() if role}
        if len(found) < sum(map(bool, roles.values())):
            raise UserError(f"'{folder}' holds several folds of a kind ({named(names)}): point at one of them")
    elif (folder / "state.json").is_file():
        found, homes = {"train": _saved(folder)}, {}
    else:
        found, homes = _parquet(folder)
    if "train" not in found:
        seen = named(sorted({name for home in homes.values() for name in home})) or "nothing of the kind"
        raise UserError(
            f"'{folder}' holds no training images ({seen}): give the folder that datasets.save_to_disk wrote, or one of"
            " parquet files such as train-00000-of-00001.parquet"
        )
    return found


def _saved(folder: Path) -> Table:
    state = _json(folder / "state.json")
    if state.get("_indices_data_files"):
        raise UserError(f"'{folder}' holds rows in another order: load it, flatten_indices() and save it again")
    entries = state.get("_data_files") or []
    names = [entry.get("filename", "") for entry in entries if isinstance(entry, dict)]
    if not names or not all(isinstance(name, str) and _is_plain(name) for name in names):
        raise UserError(f"'{folder / 'state.json'}' names no files in its folder: save the dataset again")
    return Table(tuple(folder / name for name in names))


def _parquet(folder: Path) -> tuple[dict[str, Table], dict[str, set[str]]]:
    files: dict[str, list[Path]] = {}
    homes: dict[str, set[str]] = {}
    for path in sorted(folder.rglob("*.parquet")):
        inside = path.relative_to(folder)
        if any(part.startswith(".") for part in inside.parts):
            continue
        role, home = _place(inside)
        files.setdefault(role, []).append(path)
        homes.setdefault(role, set()).add(home)
    if set(files) == {""}:
        files, homes = {"train": files[""]}, {"train": homes[""]}
    files.pop("", None)
    if len(several := set().union(*(homes[role] for role in files))) > 1:
        raise UserError(f"'{folder}' holds several datasets ({named(sorted(several))}): point at one of these folders")
    return {role: Table(tuple(paths)) for role, paths in files.items()}, homes


def _place(inside: Path) -> tuple[str, str]:
    """Return the fold that a file speaks of, by its name or a folder's, and the folder of its dataset."""
    if role := fold_role(inside.stem):
        return role, str(inside.parent)
    for folder in inside.parents:
        if role := fold_role(folder.name):
            return role, str(folder.parent)
    return "", str(inside.parent)


def _is_plain(name: str) -> bool:
    return bool(name) and Path(name).name == name and name not in (".", "..")


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(path))
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read ({visible(str(error))}): save the dataset again") from error
    if not isinstance(content, dict):
        raise UserError(f"'{path}' is damaged: save the dataset again")
    return content


def _schema(path: Path) -> pyarrow.Schema:
    with _readable(path):
        if path.suffix == ".parquet":
            from pyarrow import parquet  # slow to import

            return parquet.read_schema(path)
        from pyarrow import ipc, memory_map

        return ipc.open_stream(memory_map(str(path))).schema


def _pieces(path: Path, column: str) -> Iterator[Any]:
    if path.suffix == ".parquet":
        from pyarrow import parquet

        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_ROWS, columns=[column]):
                yield batch.column(0)
    else:
        from pyarrow import ipc, memory_map

        for batch in ipc.open_stream(memory_map(str(path))):
            found = batch.column(column)
            # Offsets of a damaged file would have memory read that is none of the file's.
            found.validate(full=True)
            yield found


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # pyarrow raises a dozen types
        raise UserError(f"'{path}' cannot be read ({visible(str(error))}): fetch or save it again") from error
