from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsynth.errors import UserError
from fedsynth.files import atomic_directory, atomic_file, nonfinite_as_null, parse_json, read_text, write_json


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder, hidden ones too, with its text."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def interrupted(path: Path) -> None:
    path.write_text("half")
    raise KeyboardInterrupt


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Once called, every further text is cut in half by a full disk."""
    write = Path.write_text

    def cut(self: Path, data: str, *args: Any, **kwargs: Any) -> int:
        write(self, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    return lambda: monkeypatch.setattr(Path, "write_text", cut)


class TestAtomicFile:
    def test_replaces_the_old_content(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "deep" / "file.txt"
        for text in ("old", "new"):
            with atomic_file(path) as temporary:
                assert temporary.parent == path.parent
                temporary.write_text(text)
                assert text == "old" or path.read_text() == "old"
        assert tree(tmp_path) == {"new/deep/file.txt": "new"}

    def test_interrupt_leaves_the_old_content(self, tmp_path: Path) -> None:
        path = tmp_path / "file.txt"
        path.write_text("old")
        with pytest.raises(KeyboardInterrupt), atomic_file(path) as temporary:
            interrupted(temporary)
        assert tree(tmp_path) == {"file.txt": "old"}

    def test_full_disk(self, tmp_path: Path, full_disk: Callable[[], None]) -> None:
        path = tmp_path / "file.txt"
        path.write_text("old")
        full_disk()
        with pytest.raises(OSError, match="No space left"), atomic_file(path) as temporary:
            temporary.write_text("half written")
        assert tree(tmp_path) == {"file.txt": "old"}

    def test_failing_rename(self, tmp_path: Path) -> None:
        (tmp_path / "file.txt").mkdir()
        with pytest.raises(OSError, match=r"file\.txt"), atomic_file(tmp_path / "file.txt") as temporary:
            temporary.write_text("new")
        assert tree(tmp_path) == {}

    def test_two_writers_do_not_meet(self, tmp_path: Path) -> None:
        path = tmp_path / "file.txt"
        with atomic_file(path) as one, atomic_file(path) as two:
            one.write_text("one")
            two.write_text("two")
        assert tree(tmp_path) == {"file.txt": "one"}


def test_content_is_on_the_disk_before_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a power failure can leave an empty file under the name of a whole one."""
    happened: list[str] = []
    sync, rename = os.fsync, Path.replace

    def synced(file: int) -> None:
        happened.append(f"synced {os.fstat(file).st_size}")
        sync(file)

    def renamed(self: Path, target: Path) -> Path:
        happened.append("renamed")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    write_json(tmp_path / "file.json", "12345")
    assert happened == ["synced 8", "renamed"]


class TestAtomicDirectory:
    def write(self, path: Path, text: str) -> None:
        with atomic_directory(path) as temporary:
            (temporary / "deep").mkdir()
            (temporary / "deep" / text).write_text(text)

    def test_replaces_the_old_folder(self, tmp_path: Path) -> None:
        self.write(tmp_path / "run" / "model", "old")
        self.write(tmp_path / "run" / "model", "new")
        assert tree(tmp_path) == {"run/model/deep/new": "new"}
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["model"]

    def test_interrupt_leaves_the_old_folder(self, tmp_path: Path) -> None:
        self.write(tmp_path / "model", "old")
        with pytest.raises(KeyboardInterrupt), atomic_directory(tmp_path / "model") as temporary:
            interrupted(temporary / "half")
        assert tree(tmp_path) == {"model/deep/old": "old"}
        assert len(list(tmp_path.iterdir())) == 1

    def test_full_disk(self, tmp_path: Path, full_disk: Callable[[], None]) -> None:
        self.write(tmp_path / "model", "old")
        full_disk()
        with pytest.raises(OSError, match="No space left"):
            self.write(tmp_path / "model", "new")
        assert tree(tmp_path) == {"model/deep/old": "old"}
        assert len(list(tmp_path.iterdir())) == 1

    def test_failing_rename_leaves_the_old_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.write(tmp_path / "model", "old")
        rename = Path.replace

        def refuse_the_new(self: Path, target: Path) -> Path:
            if (self / "deep" / "new").exists():
                raise OSError(errno.EIO, "Input/output error")
            return rename(self, target)

        monkeypatch.setattr(Path, "replace", refuse_the_new)
        with pytest.raises(OSError, match="Input/output"):
            self.write(tmp_path / "model", "new")
        assert tree(tmp_path) == {"model/deep/old": "old"}
        assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(("umask", "file_mode", "folder_mode"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_permissions_follow_the_users_umask(umask: int, file_mode: int, folder_mode: int, tmp_path: Path) -> None:
    old = os.umask(umask)
    try:
        write_json(tmp_path / "file.json", 1)
        with atomic_directory(tmp_path / "folder"):
            pass
    finally:
        os.umask(old)
    assert (tmp_path / "file.json").stat().st_mode & 0o777 == file_mode
    assert (tmp_path / "folder").stat().st_mode & 0o777 == folder_mode


class TestWriteJson:
    VALUE: dict[str, Any] = {"name": "Zürich", "counts": [1, 2], "loss": 0.1, "none": None}  # noqa: RUF012

    def test_what_cannot_be_written_leaves_the_old_content(self, tmp_path: Path) -> None:
        write_json(tmp_path / "file.json", self.VALUE)
        with pytest.raises(TypeError):
            write_json(tmp_path / "file.json", {"set": {1}})
        assert json.loads(tree(tmp_path)["file.json"]) == self.VALUE


class TestReadText:
    TEXT = 'name = "Zürich"\nsize = 8\n'

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
    @pytest.mark.parametrize("end", ["\n", "\r\n"])
    def test_the_ways_in_which_editors_save(self, tmp_path: Path, encoding: str, end: str) -> None:
        path = tmp_path / "setting.toml"
        path.write_bytes(self.TEXT.replace("\n", end).encode(encoding))
        assert read_text(path) == self.TEXT

    def test_big_endian(self, tmp_path: Path) -> None:
        path = tmp_path / "setting.toml"
        path.write_bytes(b"\xfe\xff" + self.TEXT.encode("utf-16-be"))
        assert read_text(path) == self.TEXT

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"a = 1".decode().encode("utf-16-le"), "UTF-16 without a byte-order mark"),
            (b"\xff\xfea", "torn UTF-16"),
            ("a = 'é'".encode("latin-1"), "byte 6 is no UTF-8"),
        ],
    )
    def test_what_is_neither_says_what_it_looks_like(self, tmp_path: Path, content: bytes, said: str) -> None:
        path = tmp_path / "setting.toml"
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"{said}.*: save the file as UTF-8"):
            read_text(path)


class TestJson:
    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
    def test_what_json_does_not_know_is_not_written(self, tmp_path: Path, bad: float) -> None:
        path = tmp_path / "results.json"
        write_json(path, {"a": 1.0})
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(path, {"a": [{"b": bad}]})
        assert tree(tmp_path) == {"results.json": '{\n  "a": 1.0\n}\n'}

    def test_a_missing_number_is_null_there_and_back(self, tmp_path: Path) -> None:
        measured = {"a": float("nan"), "b": [1.5, -float("inf"), {"c": np.float64("nan")}], "d": (True, "NaN", 3, None)}
        write_json(tmp_path / "a.json", nonfinite_as_null(measured))
        kept = {"a": None, "b": [1.5, None, {"c": None}], "d": [True, "NaN", 3, None]}
        assert json.loads((tmp_path / "a.json").read_text()) == kept
        assert parse_json('{"a": NaN, "b": [1.5, -Infinity, {"c": 1e999}], "d": [true, "NaN", 3, null]}') == kept
