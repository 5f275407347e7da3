"""The table beside a folder of images: ``metadata.csv``, ``.jsonl`` or ``.parquet``, a row per image.

As in Hugging Face's ``imagefolder``, ``file_name`` is the image's path from the folder of the table.
"""

from __future__ import annotations

import csv
import json
import math
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from fedsynth.data.folder_layout import named
from fedsynth.errors import UserError, did_you_mean
from fedsynth.files import read_text
from fedsynth.text import visible

FILE, LABEL = "file_name", "label"


@dataclass(frozen=True)
class Metadata:
    """A table of images.

    Attributes:
        path: its file.
        rows: values by column, without blanks at their ends; by ``file_name`` in Unicode's composed form (NFC).
        names: each ``file_name`` as the table writes it, by the same.
    """

    path: Path
    rows: Mapping[str, Mapping[str, str]]
    names: Mapping[str, str]

    def values(self, column: str, files: Iterable[Path]) -> dict[Path, str]:
        """Return what a column says of each file.

        Raises:
            UserError: a file has no row.
        """
        keys = {path: _key(path.relative_to(self.path.parent).as_posix()) for path in files}
        if lost := [key for key in keys.values() if key not in self.rows]:
            raise UserError(
                f"'{self.path}' has no row for {len(lost)} images, such as {visible(lost[0])}: add rows, or move these"
                " images away"
            )
        return {path: self.rows[key][column] for path, key in keys.items()}

    @property
    def says_labels(self) -> bool:
        """Whether it has a label column."""
        return any(LABEL in row for row in self.rows.values())


def read_metadata(folders: Iterable[Path], columns: Collection[str]) -> Metadata:
    """Read the first table that lies directly in one of ``folders``.

    Args:
        folders: where to look, in this order.
        columns: what every row must say; of the others, ``label`` alone is kept.

    Raises:
        UserError: there is none, or two in one folder; it cannot be read; it lacks a column or a row a value; a name is
            no path below its folder, or stands in two rows.
    """
    looked = [*dict.fromkeys(folders)]
    wanted = " and ".join(f"'{column}'" for column in columns)
    for folder in looked:
        if found := [name for name in _READERS if (folder / name).is_file()]:
            if len(found) > 1:
                raise UserError(f"'{folder}' holds {' and '.join(found)}: leave one of them")
            return _table(folder / found[0], columns)
    raise UserError(
        f"no {' or '.join(_READERS)} in '{looked[0]}', which is to say {wanted} of every image: put one there, with the"
        f" columns '{FILE}' and {wanted}"
    )


def _table(path: Path, columns: Collection[str]) -> Metadata:
    try:
        rows, present = _READERS[path.name](path)
    except Exception as error:  # pyarrow raises a dozen types
        raise UserError(f"'{path}' cannot be read: {visible(str(error))}") from error
    for column in (FILE, *columns):
        if column not in present:
            raise UserError(
                f"'{path}' has no column '{column}'{did_you_mean(column, present)}"
                f" (columns: {visible(named(list(present)))})"
            )
    kept = (*columns, *([LABEL] if LABEL in present and LABEL not in columns else []))
    found: dict[str, dict[str, str]] = {}
    names: dict[str, str] = {}
    for number, row in enumerate(rows, start=1):
        name = _text(row.get(FILE))
        inside = PurePosixPath(name)
        if not name or inside.is_absolute() or ".." in inside.parts:
            raise UserError(
                f"'{path}', row {number}: {FILE} = '{visible(name)}': must be a path from the folder of the table"
            )
        values = {column: _text(row.get(column)) for column in kept}
        if empty := [column for column, value in values.items() if not value]:
            raise UserError(f"'{path}', row {number}: '{visible(name)}' has no '{empty[0]}': fill it in")
        if (key := _key(inside.as_posix())) in found:
            raise UserError(f"'{path}', row {number}: '{visible(name)}' has two rows: leave one")
        found[key] = values
        names[key] = str(row[FILE]).strip()
    return Metadata(path, found, names)


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _text(value: Any) -> str:
    """A cell as text; a column of whole numbers with a gap is read as floats, so that 7.0 is 7."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return unicodedata.normalize("NFC", str(value)).strip()


Table = tuple[list[dict[str, Any]], list[str]]


def _csv(path: Path) -> Table:
    reader = csv.DictReader(read_text(path).splitlines(), strict=True)
    rows = list(reader)
    return rows, list(reader.fieldnames or ())


def _jsonl(path: Path) -> Table:
    rows = [json.loads(line) for line in read_text(path).splitlines() if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("a line is no object of names and values")
    return rows, list(dict.fromkeys(name for row in rows for name in row))


def _parquet(path: Path) -> Table:
    from pyarrow import parquet, types  # slow to import

    schema = parquet.read_schema(path)
    # Images, too, may stand in such a table.
    plain = [f.name for f in schema if not (types.is_nested(f.type) or types.is_binary(f.type))]
    table = parquet.read_table(path, columns=plain)
    return table.to_pylist(), table.column_names


_READERS: dict[str, Callable[[Path], Table]] = {
    "metadata.csv": _csv,
    "metadata.jsonl": _jsonl,
    "metadata.parquet": _parquet,
}
