from __future__ import annotations

import hashlib
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedsynth.data import ImageCache, image_cache, load_dataset
from fedsynth.data.medmnist import load_medmnist
from fedsynth.data.medmnist_index import MEDMNIST, MEDMNIST_SIZES, MedMNISTSet
from fedsynth.data.pixels import to_pixels
from fedsynth.errors import UserError

RNG = np.random.default_rng(0)


def write(root: Path, name: str, side: int = 28, **changes: Any) -> tuple[dict[str, Any], dict[str, MedMNISTSet]]:
    """Write a tiny set as its authors write theirs, and return its arrays and an index that holds its MD5 sum."""
    known = MEDMNIST[name]
    arrays: dict[str, Any] = {}
    for fold, count in (("train", 11), ("val", 2), ("test", 5)):
        shape = (count, side, side, 3) if known.channels == 3 else (count, side, side)
        arrays[f"{fold}_images"] = RNG.integers(0, 256, shape, dtype=np.uint8)
        arrays[f"{fold}_labels"] = RNG.integers(0, len(known.classes), (count, 1), dtype=np.uint8)
    arrays |= changes
    path = root / (f"{name}.npz" if side == 28 else f"{name}_{side}.npz")
    np.savez_compressed(path, **arrays)
    return arrays, index_of(name, path)


def index_of(name: str, path: Path) -> dict[str, MedMNISTSet]:
    md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    return {**MEDMNIST, name: replace(MEDMNIST[name], md5=(md5,) * len(MEDMNIST_SIZES))}


@pytest.mark.parametrize(("name", "channels"), [("bloodmnist", 3), ("pneumoniamnist", 1)])
def test_folds_are_those_of_the_file(name: str, channels: int, tmp_path: Path) -> None:
    arrays, index = write(tmp_path, name)
    folds = load_medmnist(name, tmp_path, None, None, index=index)
    for data, fold in zip(folds, ("train", "test"), strict=True):
        assert data.images.shape[3] == channels
        assert (data.images.squeeze() == arrays[f"{fold}_images"]).all()
        assert data.labels.tolist() == arrays[f"{fold}_labels"].ravel().tolist()
        assert data.classes == MEDMNIST[name].classes


@pytest.mark.parametrize(("size", "side"), [(16, 28), (28, 28), (32, 64), (64, 64), (100, 128)])
def test_the_smallest_file_that_has_the_pixels_is_read_and_resized(size: int, side: int, tmp_path: Path) -> None:
    arrays, index = write(tmp_path, "bloodmnist", side)
    train, _ = load_medmnist("bloodmnist", tmp_path, size, None, index=index)
    wanted = [to_pixels(Image.fromarray(image), size, 3) for image in arrays["train_images"]]
    assert (train.images == np.stack(wanted)).all()


def test_large_sets_are_read_piece_by_piece_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_cache, "LARGE_BYTES", 1)
    monkeypatch.setattr("fedsynth.data.medmnist._CHUNK_BYTES", 3 * 64 * 64 * 3)
    arrays, index = write(tmp_path, "bloodmnist", 64)
    for _ in range(2):
        train, test = load_medmnist("bloodmnist", tmp_path, 64, None, ImageCache(tmp_path / "cache"), index=index)
        assert isinstance(train.images, np.memmap)
        assert (train.images == arrays["train_images"]).all()
        assert (test.images == arrays["test_images"]).all()
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_file_of_another_content_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "bloodmnist")
    with pytest.raises(UserError, match=r"MD5 sum is [0-9a-f]{32}, not 7053d0359d879ad8a5505303e11de1dc; fetch it"):
        load_dataset("medmnist:bloodmnist", tmp_path)


@pytest.mark.parametrize(
    ("name", "size", "reason"),
    [
        ("medmnist:bloodmnits", None, r"no such set: did you mean 'bloodmnist'\? \(known: pathmnist, "),
        ("medmnist", None, r"name a set, as 'medmnist:bloodmnist' does \(known: pathmnist, "),
        ("medmnits:bloodmnist", None, "did you mean 'medmnist'"),
        ("medmnist:chestmnist", None, "several labels at once"),
        ("medmnist:organmnist3d", None, "images are volumes"),
        ("medmnist:bloodmnist", 256, "image-size = 256: MedMNIST has at most 224 pixels"),
        ("medmnist:bloodmnist", 60, r"image-size = 60 needs '.*bloodmnist_64\.npz'"),
    ],
)
def test_what_cannot_be_read_says_why(name: str, size: int | None, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=reason):
        load_dataset(name, tmp_path, image_size=size)


PICKLED = np.array([{"a": 1}] * 11, dtype=object)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"train_images": np.zeros((11, 28, 28), np.uint8)}, "does not have the shape"),
        ({"train_images": np.zeros((11, 28, 28, 3))}, "an array of float64"),
        ({"train_images": np.asfortranarray(np.zeros((11, 28, 28, 3), np.uint8))}, "not of uint8 in row order"),
        ({"train_images": PICKLED}, "an array of object"),
        ({"train_labels": PICKLED}, "an array of object"),
        ({"train_labels": np.zeros((11, 14), np.uint8)}, r"has the shape \(11, 14\)"),
        ({"train_labels": np.full((11, 1), 8, np.uint8)}, "does not fit 8 classes"),
        ({"train_labels": np.zeros((0, 1), np.uint8)}, "does not fit 8 classes"),
    ],
)
def test_arrays_that_do_not_fit_are_named(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    _, index = write(tmp_path, "bloodmnist", **changes)
    with pytest.raises(UserError, match=rf"bloodmnist\.npz' is not a MedMNIST file \(.*{reason}"):
        load_medmnist("bloodmnist", tmp_path, None, None, index=index)


@pytest.mark.parametrize("damage", ["no archive", "absent array", "absent pixels"])
def test_broken_archives_are_user_errors(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "bloodmnist.npz"
    if damage == "no archive":
        path.write_bytes(pickle.dumps({"train_images": 1}))
    elif damage == "absent array":
        np.savez(path, train_images=np.zeros((2, 28, 28, 3), np.uint8))
    else:
        write(tmp_path, "bloodmnist")
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        members["train_images.npy"] = members["train_images.npy"][:-1]
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
    with pytest.raises(UserError, match="is not a MedMNIST file"):
        load_medmnist("bloodmnist", tmp_path, None, None, index=index_of("bloodmnist", path))


def test_the_index_holds_a_sum_for_every_file() -> None:
    sums = [md5 for known in MEDMNIST.values() for md5 in known.md5]
    assert len(set(sums)) == len(MEDMNIST) * len(MEDMNIST_SIZES) == 44
    assert all(len(md5) == 32 and int(md5, 16) >= 0 for md5 in sums)
    assert not any("/" in name for known in MEDMNIST.values() for name in known.classes)
