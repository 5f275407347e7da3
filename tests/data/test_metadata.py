from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from fedsynth.data.metadata import read_metadata
from fedsynth.errors import UserError

ROWS: list[dict[str, Any]] = [
    {"file_name": "a/0.png", "patient": 7, "site": "north ", "age": 30.5},
    {"file_name": "b/cafe\u0301.png", "patient": 12, "site": "süd", "age": None},
]


def write(folder: Path, name: str, rows: list[dict[str, Any]] = ROWS) -> Path:
    path = folder / name
    if name.endswith(".csv"):
        lines = [",".join(rows[0]), *(",".join("" if v is None else str(v) for v in row.values()) for row in rows)]
        path.write_text("\n".join(lines), encoding="utf-8-sig")
    elif name.endswith(".jsonl"):
        path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    else:
        parquet.write_table(pa.Table.from_pylist([{**row, "box": [1, 2]} for row in rows]), path)
    return path


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "metadata.parquet"])
def test_three_formats_say_the_same(name: str, tmp_path: Path) -> None:
    write(tmp_path, name)
    table = read_metadata([tmp_path / "absent", tmp_path], ["patient", "site"])
    files = [tmp_path / "b" / "caf\u00e9.png", tmp_path / "a" / "0.png"]
    assert table.values("patient", files) == {files[0]: "12", files[1]: "7"}
    assert table.values("site", files[1:]) == {files[1]: "north"}
    assert not table.says_labels
    with pytest.raises(UserError, match=r"has no row for 1 images, such as a/1\.png: add rows"):
        table.values("site", [tmp_path / "a" / "1.png"])


def test_whole_numbers_beside_a_gap_stay_whole(tmp_path: Path) -> None:
    write(tmp_path, "metadata.parquet", [{**row, "patient": float(row["patient"])} for row in ROWS])
    assert [row["patient"] for row in read_metadata([tmp_path], ["patient"]).rows.values()] == ["7", "12"]


@pytest.mark.parametrize(
    ("rows", "column", "said"),
    [
        (ROWS, "patent", "has no column 'patent': did you mean 'patient'\\? \\(columns: file_name, patient, site, age"),
        ([{"file": "a/0.png", "patient": 1}], "patient", "has no column 'file_name'"),
        (ROWS, "age", "row 2: 'b/.*' has no 'age': fill it in"),
        ([*ROWS, ROWS[0]], "patient", "row 3: 'a/0.png' has two rows: leave one"),
        (
            [{"file_name": "../x.png", "patient": 1}],
            "patient",
            "file_name = '../x.png': must be a path from the folder",
        ),
        ([{"file_name": "/etc/x.png", "patient": 1}], "patient", "file_name = '/etc/x.png': must be a path"),
    ],
)
@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "metadata.parquet"])
def test_what_a_table_lacks_is_named(
    name: str, rows: list[dict[str, Any]], column: str, said: str, tmp_path: Path
) -> None:
    write(tmp_path, name, rows)
    with pytest.raises(UserError, match=said) as caught:
        read_metadata([tmp_path], [column])
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "metadata.parquet"])
def test_what_is_no_table_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no metadata.csv or .* which is to say 'patient' of every image: put one"):
        read_metadata([tmp_path], ["patient"])
    (tmp_path / name).write_bytes(b'["\xff\xfe\x00')
    with pytest.raises(UserError, match=rf"'.*{name}' cannot be read: "):
        read_metadata([tmp_path], ["patient"])
    for other in ("metadata.csv", "metadata.parquet", "metadata.jsonl"):
        write(tmp_path, other)
    with pytest.raises(UserError, match=r"holds metadata.csv and metadata.jsonl and metadata.parquet: leave one"):
        read_metadata([tmp_path], ["patient"])
