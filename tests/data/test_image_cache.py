from __future__ import annotations

import logging
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray

from fedsynth.data import LabelledImages, image_cache, labelled_images
from fedsynth.data.image_cache import ImageCache, MappedImages, file_states, join_images, read_images, take_rows
from fedsynth.errors import FilesError, UserError

SHAPE = (6, 4, 4, 3)
PIXELS = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)
GOOD = np.array([True, False, True, True, False, True])


class Reader:
    """Writes the good rows of :data:`PIXELS` and counts how often it is asked."""

    calls = 0

    def __call__(self, out: NDArray[np.uint8]) -> NDArray[np.bool_]:
        self.calls += 1
        out[GOOD] = PIXELS[GOOD]
        return GOOD


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_cache, "LARGE_BYTES", 1)


def test_images_are_decoded_once_and_mapped(tmp_path: Path) -> None:
    reader = Reader()
    for _ in range(2):
        images, good = read_images(SHAPE, reader, ImageCache(tmp_path), lambda: "source")
        assert isinstance(images, np.memmap)
        assert (images == PIXELS[GOOD]).all()
        assert (good == GOOD).all()
    assert reader.calls == 1
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 0
    assert len(list(tmp_path.iterdir())) == 1


def test_a_single_file_takes_the_place_of_others(tmp_path: Path) -> None:
    (tmp_path / "note.txt").touch()
    cache = ImageCache(tmp_path, single=True)
    first, _ = read_images(SHAPE, Reader(), cache, lambda: "first")
    read_images(SHAPE, Reader(), cache, lambda: "second")
    reader = Reader()
    assert (read_images(SHAPE, reader, cache, lambda: "second")[0] == first).all()
    assert reader.calls == 0
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".images", ".txt"]


def test_images_that_would_take_more_than_is_allowed_are_refused(tmp_path: Path) -> None:
    read_images(SHAPE, Reader(), ImageCache(tmp_path / "fits", most_bytes=PIXELS.size), lambda: "source")
    with pytest.raises(FilesError, match="disk-mb of the policy"):
        read_images(SHAPE, Reader(), ImageCache(tmp_path / "not", most_bytes=PIXELS.size - 1), lambda: "source")
    assert not (tmp_path / "not").exists()


def test_small_sets_and_those_without_a_folder_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, good = read_images(SHAPE, Reader(), None, lambda: "source")
    monkeypatch.setattr(image_cache, "LARGE_BYTES", PIXELS.size + 1)
    again, _ = read_images(SHAPE, Reader(), ImageCache(tmp_path / "cache"), lambda: "source")
    for found in (images, again):
        assert type(found) is np.ndarray
        assert (found == PIXELS[GOOD]).all()
    assert (good == GOOD).all()
    assert not (tmp_path / "cache").exists()


def test_another_source_or_shape_is_another_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"one")
    states = [file_states([file])]
    file.write_bytes(b"other")
    states.append(file_states([file]))
    reader = Reader()
    for state in states:
        read_images(SHAPE, reader, ImageCache(tmp_path / "cache"), lambda state=state: state)
    read_images((6, 4, 12, 1), lambda out: GOOD, ImageCache(tmp_path / "cache"), lambda: states[0])
    assert reader.calls == 2
    assert len(list((tmp_path / "cache").iterdir())) == 3


@pytest.mark.parametrize("damage", ["pixel", "mask", "short", "empty", "long"])
def test_a_damaged_file_is_made_again(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    reader = Reader()
    read_images(SHAPE, reader, ImageCache(tmp_path), lambda: "source")
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    if damage in ("pixel", "mask"):
        content[0 if damage == "pixel" else -9] ^= 1
    path.write_bytes({"short": content[:-1], "empty": b"", "long": content + b"0"}.get(damage, content))
    with caplog.at_level(logging.WARNING, logger="fedsynth"):
        images, good = read_images(SHAPE, reader, ImageCache(tmp_path), lambda: "source")
    assert "it is made again" in caplog.text
    assert reader.calls == 2
    assert (images == PIXELS[GOOD]).all()
    assert (good == GOOD).all()


def test_an_interrupted_reading_leaves_nothing(tmp_path: Path) -> None:
    def fails(out: NDArray[np.uint8]) -> NDArray[np.bool_]:
        raise UserError("no image")

    with pytest.raises(UserError, match="no image"):
        read_images(SHAPE, fails, ImageCache(tmp_path), lambda: "source")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FilesError, match="a file stands where a folder is needed"):
        read_images(SHAPE, Reader(), ImageCache(tmp_path / "file"), lambda: "source")


def test_what_another_institution_hears_does_not_tell_how_many_images_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, _ = read_images(SHAPE, Reader(), ImageCache(tmp_path), lambda: "source")
    with pytest.raises(FilesError, match=r"not enough disk space for .* needed") as caught:
        read_images((10**9, 10**5, 10**5, 3), Reader(), ImageCache(tmp_path), lambda: "source")
    assert caught.value.elsewhere == "images cannot be kept decoded on the disk: the silo's log says why"
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(FilesError, match="not enough disk space for"):
        take_rows(images, np.arange(4))


def test_an_unreadable_source_is_not_called_unwritable(tmp_path: Path) -> None:
    def fails(out: NDArray[np.uint8]) -> NDArray[np.bool_]:
        raise OSError(5, "Input/output error")

    with pytest.raises(UserError, match=r"images cannot be read: .*Input/output error"):
        read_images(SHAPE, fails, ImageCache(tmp_path), lambda: "source")


def test_only_the_owner_may_read_the_file(tmp_path: Path) -> None:
    read_images(SHAPE, Reader(), ImageCache(tmp_path), lambda: "source")
    (path,) = tmp_path.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600


def resident_kilobytes(path: Path) -> int:
    """Memory of this process that holds pages of a file."""
    found, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            ours = line.endswith(str(path))
        elif ours and line.startswith("Rss:"):
            found += int(line.split()[1])
    return found


@pytest.mark.parametrize("how", ["one by one", "slices", "rows", "many rows", "fingerprint", "writing"])
def test_pages_that_were_read_do_not_stay_in_memory(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_cache, "_KEPT_BYTES", 2**16)
    monkeypatch.setattr(image_cache, "_ROWS_AT_ONCE", 8)
    monkeypatch.setattr(labelled_images, "_ROWS", 20)
    resident: list[int] = []

    def fill(out: NDArray[np.uint8]) -> NDArray[np.bool_]:
        for row in range(len(out)):
            out[row] = row % 251
        resident.append(resident_kilobytes(next(tmp_path.glob(".*.part"))))
        return np.ones(len(out), dtype=bool)

    images, _ = read_images((600, 64, 64, 1), fill, ImageCache(tmp_path), lambda: "source")
    (path,) = tmp_path.iterdir()
    numbers = np.arange(600) % 251
    if how == "one by one":
        assert [int(image[5, 5, 0]) for image in (images[row] for row in range(600))] == numbers.tolist()
    elif how == "slices":
        assert sum(int(images[first : first + 20].sum()) for first in range(0, 600, 20)) == 4096 * numbers.sum()
    elif how == "rows":
        drawn = np.random.default_rng(0).permutation(600).reshape(-1, 20)
        assert all((images[rows][:, 0, 0, 0] == numbers[rows]).all() for rows in drawn)
    elif how == "many rows":
        let_go = MappedImages._let_go

        def watched(images: MappedImages, size: int) -> None:
            resident.append(resident_kilobytes(path))
            let_go(images, size)

        monkeypatch.setattr(MappedImages, "_let_go", watched)
        rows = np.random.default_rng(0).permutation(600)[:48]
        assert (images[rows][:, 0, 0, 0] == numbers[rows]).all()
        assert max(resident[1:]) < 1200
    elif how == "fingerprint":
        data = LabelledImages(images, np.zeros(600, np.int64), ("a",))
        in_memory = LabelledImages(np.array(images), data.labels, data.classes)
        images[0], images[0:20]
        assert data.fingerprint() == in_memory.fingerprint()
    elif how == "writing":
        images = np.empty(0, np.uint8)
        assert resident[0] < 1200
    # A file of 2.4 MB, of which the system maps a few pages around each one that is asked for.
    assert resident_kilobytes(path) < 1200


def test_rows_of_mapped_images_are_mapped_too_and_leave_nothing(tmp_path: Path) -> None:
    images, _ = read_images(SHAPE, Reader(), ImageCache(tmp_path), lambda: "source")
    rows = np.array([3, 1, 1])
    for taken in (take_rows(images, rows), take_rows(take_rows(images, np.arange(4)), rows)):
        assert isinstance(taken, np.memmap)
        assert (taken == PIXELS[GOOD][rows]).all()
    assert type(take_rows(PIXELS, rows)) is np.ndarray
    for pair in ((images, take_rows(images, rows)), (PIXELS[:2], images), (images, PIXELS[:1])):
        joined = join_images(*pair)
        assert isinstance(joined, np.memmap)
        assert (joined == np.concatenate(pair)).all()
    assert type(join_images(PIXELS, PIXELS)) is np.ndarray
    data = LabelledImages(images, np.arange(4), ("a", "b", "c", "d")).subset(rows)
    assert isinstance(data.images, np.memmap)
    in_memory = LabelledImages(PIXELS[GOOD][rows], rows, data.classes)
    assert data.fingerprint() == in_memory.fingerprint()
    assert len(list(tmp_path.iterdir())) == 1
