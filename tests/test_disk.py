from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from fedsynth.disk import check_free_space, check_writable, describe_write_error, explained_writing
from fedsynth.errors import UserError


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "no space left"),
        (errno.EACCES, "you may not write there"),
        (errno.ENOTDIR, "a file stands where a folder is needed"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_write_errors_name_the_path_and_the_way_out(number: int, advice: str) -> None:
    message = str(describe_write_error(OSError(number, os.strerror(number)), Path("runs/a")))
    assert message.startswith("cannot write 'runs/a': ")
    assert advice in message
    assert "output folder" in message


def test_only_disk_errors_are_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write"), explained_writing(tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied")
    with pytest.raises(KeyError), explained_writing(tmp_path):
        raise KeyError("x")


def test_free_space_is_asked_of_the_nearest_existing_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=5_000_000)
    asked: list[Path] = []

    def disk_usage(path: Path) -> Any:
        asked.append(path)
        return usage

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    check_free_space(tmp_path / "not" / "yet", 5_000_000)
    assert asked == [tmp_path]
    with pytest.raises(UserError, match=r"not/yet.*5\.1 MB needed, 5 MB free"):
        check_free_space(tmp_path / "not" / "yet", 5_100_000)


def test_a_path_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "folder" / "numbers.json")
    assert [*tmp_path.iterdir()] == []
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write '.*numbers.json': a file stands where a folder is needed"):
        check_writable(tmp_path / "file" / "numbers.json")
