"""What headers say is looked up once, as long as the files stay what they were."""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

import pytest
from class_folders import write_images

from fedsynth.data import image_folder, kept_facts, pixels
from fedsynth.data.image_cache import ImageCache
from fedsynth.data.image_folder import load_image_folder
from fedsynth.data.labelled_images import Folds


@pytest.fixture(autouse=True)
def few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_facts, "MANY_IMAGES", 1)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images", {"cat": 6, "dog": 4}, side=9)


def headers_read(images: Path, cache: ImageCache | None, size: int | None = None) -> tuple[int, Folds]:
    with (
        mock.patch.object(image_folder, "read_header", wraps=image_folder.read_header) as first,
        mock.patch.object(pixels, "read_header", wraps=pixels.read_header) as second,
    ):
        folds = load_image_folder(images, size, None, False, 0, cache=cache)
    return first.call_count + second.call_count, folds


def test_headers_are_read_once_while_the_files_stay(images: Path, tmp_path: Path) -> None:
    cache = ImageCache(tmp_path / "cache")
    counts, folds = zip(*(headers_read(images, cache) for _ in range(2)), strict=True)
    assert counts == (20, 0)
    assert folds[0][0].images.shape == folds[1][0].images.shape == (8, 9, 9, 1)
    assert headers_read(images, cache, size=16)[1][0].images.shape == (8, 16, 16, 1)
    assert headers_read(images, cache, size=16)[0] == 0
    assert {path.stat().st_mode & 0o777 for path in cache.folder.iterdir()} == {0o600}
    write_images(tmp_path / "others", {"a": 1}, side=12, colour=True)
    os.replace(tmp_path / "others" / "a" / "0.png", images / "cat" / "0.png")
    count, (train, _) = headers_read(images, cache)
    assert count == 20
    assert train.images.shape[1:] == (32, 32, 3)
    assert headers_read(images, None)[0] == 20


def test_damaged_facts_are_found_again_and_a_folder_that_cannot_be_written_does_no_harm(
    images: Path, tmp_path: Path
) -> None:
    cache = ImageCache(tmp_path / "cache")
    headers_read(images, cache)
    for path, content in zip(sorted(cache.folder.iterdir()), ("{", '{"facts": ["a"]}'), strict=True):
        path.write_text(content)
    assert headers_read(images, cache)[0] == 20
    assert headers_read(images, cache)[0] == 0
    (tmp_path / "file").touch()
    assert headers_read(images, ImageCache(tmp_path / "file" / "cache"))[0] == 20


def test_few_images_leave_nothing(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_facts, "MANY_IMAGES", 11)
    headers_read(images, ImageCache(tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()
