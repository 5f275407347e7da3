"""The disk is full at any write of any file of a run: the file of before is read as before, and the error says what."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from full_disk import full_after

from fedsynth.cli.sweeps.sweep_file import read_sweep
from fedsynth.cli.sweeps.sweep_manifest import plan, read_manifest, write_manifest
from fedsynth.errors import UserError
from fedsynth.files import write_json
from fedsynth.output import RunFolder, SyntheticDataset, read_dataset, write_dataset
from strategies.run.checkpoint import Checkpoint


class Writer(NamedTuple):
    """Writes one or another content into a folder, and reads it back."""

    write: Callable[[Path, int], None]
    read: Callable[[Path], Any]


def dataset(folder: Path, content: int) -> None:
    images = np.full((3, 4, 4, 1), content, np.uint8)
    write_dataset(SyntheticDataset(images, np.arange(3), ("a", "b", "c"), {"n": content}), folder / "synthetic")


def checkpoint(folder: Path, content: int) -> None:
    Checkpoint(content, {"w": torch.full((50,), float(content))}, {}, {}, {"north": [1]}).save(folder)


def sweep(folder: Path, content: int) -> None:
    file = folder.with_name("s.toml")
    file.write_text(f'output-dir = "{folder}"\nbatch-size = {content}\n', encoding="utf-8")
    read = read_sweep(file)
    read.folder.mkdir(parents=True, exist_ok=True)
    write_manifest(read, plan(read))


def row(folder: Path, content: int) -> None:
    RunFolder(folder).append_metrics({"round": content})


def cut(folder: Path, content: int) -> None:
    """Metrics that a resumed run cuts back, of a run of two rounds."""
    run = RunFolder(folder)
    if not run.metrics.exists():
        run.append_metrics({"round": 1})
        run.append_metrics({"round": 2})
    run.keep_metrics(3 - content)


WRITERS = {
    "config": Writer(lambda f, k: RunFolder(f).write_config({"config": {"seed": k}}), lambda f: bytes_of(f, "config")),
    "status": Writer(lambda f, k: RunFolder(f).write_status({"round": k}), lambda f: bytes_of(f, "status")),
    "results": Writer(lambda f, k: RunFolder(f).write_results({"n": k}), lambda f: bytes_of(f, "results")),
    "partition": Writer(lambda f, k: RunFolder(f).write_partition({"n": k}), lambda f: bytes_of(f, "partition")),
    "metrics": Writer(row, lambda f: RunFolder(f).read_metrics()),
    "metrics cut back": Writer(cut, lambda f: RunFolder(f).read_metrics()),
    "dataset": Writer(dataset, lambda f: read_dataset(f / "synthetic").images.tolist()),
    "checkpoint": Writer(checkpoint, lambda f: loaded(f).arrays["w"].tolist()),
    "sweep": Writer(sweep, lambda f: read_manifest(f / "s")),
}


def bytes_of(folder: Path, name: str) -> bytes:
    return (folder / f"{name}.json").read_bytes()


def loaded(folder: Path) -> Checkpoint:
    found = Checkpoint.load(folder)
    assert found is not None
    return found


@pytest.mark.parametrize("name", WRITERS)
def test_at_every_write_the_content_of_before_stays_and_the_error_says_so(name: str, tmp_path: Path) -> None:
    folder, (write, read) = tmp_path / "run", WRITERS[name]
    folder.mkdir()
    write(folder, 1)
    before = read(folder)
    for writes in itertools.count():
        assert writes < 200
        with full_after(writes, folder) as disk:
            try:
                write(folder, 2)
            except UserError as error:
                assert f"cannot write '{folder}" in str(error)  # noqa: PT017
                assert "no space left on that disk: free some" in str(error)  # noqa: PT017
            else:
                assert not disk.full, "the error was swallowed"
                break
        assert read(folder) == before, f"after {writes} writes"
        assert list(folder.rglob("*.part")) == []
    assert writes > 0
    assert read(folder) != before


def test_plain_json_stays_too(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, 1)
    with full_after(0, tmp_path), pytest.raises(OSError, match="No space left"):
        write_json(path, 2)
    assert path.read_text(encoding="utf-8") == "1\n"
