from __future__ import annotations

import io
import json
import logging
import socket
from pathlib import Path
from typing import Any
from unittest import mock

import datasets
import numpy as np
import pyarrow
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from numpy.typing import NDArray
from PIL import Image
from pyarrow import parquet

from fedsynth.config import RunConfig, Scalar
from fedsynth.data import (
    ImageCache,
    LabelledImages,
    Origins,
    hub_folder,
    image_cache,
    kept_facts,
    load_dataset,
    load_federation,
)
from fedsynth.errors import UserError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
LABELS = [0, 1] * 6
CENTERS = [0] * 4 + [1] * 4 + [2] * 4
TEST = [1, 3, 5, 8]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        pytest.fail("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def skin() -> Dataset:
    """A tiny Fed-ISIC2019: names of its classes, and the centre of every image."""
    features = Features(
        {"image": datasets.Image(), "center": Value("int64"), "label": ClassLabel(names=["AK", "BCC/other"])}
    )
    images = [Image.fromarray(pixels) for pixels in PIXELS]
    return Dataset.from_dict({"image": images, "center": CENTERS, "label": LABELS}, features=features)


def png(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def write_parquet(path: Path, **columns: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), path, row_group_size=5)


def pictures(rows: list[int]) -> list[dict[str, Any]]:
    return [{"bytes": png(PIXELS[row]), "path": f"{row}.png"} for row in rows]


def saved(root: Path) -> None:
    DatasetDict({"train": skin(), "test": skin().select(TEST)}).save_to_disk(
        str(root), num_shards={"train": 3, "test": 1}
    )


def shards(root: Path) -> None:
    skin().select(range(7)).to_parquet(root / "data" / "train-00000-of-00002-0a1b.parquet")
    skin().select(range(7, 12)).to_parquet(root / "data" / "train-00001-of-00002-0a1b.parquet")
    skin().select(TEST).to_parquet(root / "data" / "test-00000-of-00001-0a1b.parquet")
    skin().select([0]).to_parquet(root / "data" / "validation-00000-of-00001-0a1b.parquet")
    (root / ".cache").mkdir()
    (root / ".cache" / "train.parquet").write_bytes(b"torn")


def folders(root: Path) -> None:
    skin().to_parquet(root / "default" / "train" / "0000.parquet")
    skin().select(TEST).to_parquet(root / "default" / "validation" / "0000.parquet")


def agrees(data: LabelledImages, rows: list[int]) -> bool:
    return bool((data.images == PIXELS[rows]).all()) and data.labels.tolist() == [LABELS[row] for row in rows]


@pytest.mark.parametrize("write", [saved, shards, folders])
def test_folds_of_every_layout_are_read(write: Any, tmp_path: Path) -> None:
    write(tmp_path / "skin")
    for name, root in (("hf:skin", tmp_path), ("hf", tmp_path / "skin")):
        train, test = load_dataset(name, root)
        assert agrees(train, [*range(12)])
        assert agrees(test, TEST)
        # A class becomes a folder.
        assert train.classes == ("AK", "BCC-other")
        assert train.silos is train.groups is None


def test_a_dataset_without_folds_is_split(tmp_path: Path) -> None:
    skin().save_to_disk(str(tmp_path))
    folds = load_dataset("hf", tmp_path, seed=3)
    assert [fold.label_counts().tolist() for fold in folds] == [[4, 5], [2, 1]]
    found = {image.tobytes() for fold in folds for image in fold.images}
    assert found == {image.tobytes() for image in PIXELS}


def test_a_column_names_the_natural_silos(tmp_path: Path) -> None:
    shards(tmp_path)
    keys: dict[str, Scalar] = {
        "dataset": "hf",
        "data-root": str(tmp_path),
        "partition": "natural",
        "silo-column": "center",
        "num-clients": 3,
    }
    federation = load_federation(RunConfig.from_run_config(keys))
    assert federation.silo_names == ("0", "1", "2")
    assert [part.tolist() for part in federation.parts] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    left_out = load_federation(RunConfig.from_run_config({**keys, "num-clients": 2, "test-silo": "2"}))
    assert agrees(left_out.train, [*range(8)])
    assert agrees(left_out.test, [8, 9, 10, 11, 8])


def test_names_of_a_silo_column_are_its_classes_names_and_groups_stay_whole(tmp_path: Path) -> None:
    """CIFAR-100 as it lies on the Hub: two columns of labels, the coarse one as silos."""
    features = Features(
        {
            "img": datasets.Image(),
            "fine_label": ClassLabel(names=["apple", "bear"]),
            "coarse_label": ClassLabel(names=["fruit", "meat", "rest"]),
        }
    )
    images = [Image.fromarray(pixels) for pixels in PIXELS]
    content = {"img": images, "fine_label": LABELS, "coarse_label": CENTERS}
    Dataset.from_dict(content, features=features).to_parquet(tmp_path / "train-00000-of-00001.parquet")
    origins = Origins(natural=True, silo_column="coarse_label", group_column="coarse_label", test_silo="meat")
    train, test = load_dataset("hf", tmp_path, origins=origins)
    assert train.classes == ("apple", "bear")
    assert train.silos is not None
    assert train.silos.tolist() == ["fruit"] * 4 + ["rest"] * 4
    assert agrees(test, [4, 5, 6, 7])
    assert test.groups is not None
    assert test.groups.tolist() == ["meat"] * 4


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["dog", "cat"] * 6, ("cat", "dog")),
        ([10, 9] * 6, ("9", "10")),
        ([1, -1] * 6, ("-1", "1")),
        (pyarrow.array(["dog", "cat"] * 6).dictionary_encode(), ("cat", "dog")),
    ],
)
def test_labels_without_names_are_sorted(labels: Any, classes: tuple[str, ...], tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", image=[png(pixels) for pixels in PIXELS], label=labels)
    write_parquet(tmp_path / "test.parquet", image=[png(pixels) for pixels in PIXELS], label=labels)
    train, _ = load_dataset("hf", tmp_path)
    assert train.classes == classes
    assert train.labels.tolist() == [1, 0] * 6
    assert (train.images == PIXELS).all()


def test_large_sets_lie_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_cache, "LARGE_BYTES", 1)
    saved(tmp_path / "skin")
    for _ in range(2):
        train, test = load_dataset("hf:skin", tmp_path, cache=ImageCache(tmp_path / "cache"))
        assert isinstance(train.images, np.memmap)
        assert agrees(train, [*range(12)])
        assert agrees(test, TEST)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_headers_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_facts, "MANY_IMAGES", 16)
    saved(tmp_path / "skin")
    read = mock.Mock(wraps=hub_folder.read_header)
    monkeypatch.setattr(hub_folder, "read_header", read)
    for _ in range(2):
        train, _ = load_dataset("hf:skin", tmp_path, cache=ImageCache(tmp_path / "cache"))
        assert agrees(train, [*range(12)])
    assert read.call_count == 12 + len(TEST)
    train, _ = load_dataset("hf:skin", tmp_path, image_size=8, cache=ImageCache(tmp_path / "cache"))
    assert train.images.shape[1:] == (8, 8, 3)
    assert read.call_count == 12 + len(TEST)


def test_grey_or_colour_is_decided_for_all_folds_and_images_are_resized(tmp_path: Path) -> None:
    rows = {"label": ["a", "b"] * 6}
    grey = PIXELS[..., 0].repeat(5, axis=1).repeat(5, axis=2)
    write_parquet(tmp_path / "train.parquet", image=[png(pixels) for pixels in grey], **rows)
    write_parquet(tmp_path / "test.parquet", image=[png(pixels) for pixels in grey], **rows)
    assert load_dataset("hf", tmp_path)[0].images.shape == (12, 32, 32, 1)
    write_parquet(tmp_path / "test.parquet", image=[png(pixels) for pixels in PIXELS], **rows)
    assert load_dataset("hf", tmp_path, image_size=8)[0].images.shape == (12, 8, 8, 3)


def test_unreadable_rows_are_named_or_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = pictures([*range(12)])
    rows[3]["bytes"] = rows[3]["bytes"][:60]
    rows[7] = {"bytes": None, "path": "/etc/passwd"}
    path = tmp_path / "train.parquet"
    write_parquet(path, image=rows, label=LABELS, patient=[*"abcdefghijkl"])
    with pytest.raises(UserError, match=r"2 of 12 images cannot be read: row 4 of .*train\.parquet \(.*; row 8 of .*"):
        load_dataset("hf", tmp_path)
    with caplog.at_level(logging.WARNING, logger="fedsynth"):
        folds = load_dataset("hf", tmp_path, skip_bad_images=True, origins=Origins(group_column="patient"))
    assert "a path instead of an image" in caplog.text
    for fold in folds:
        assert fold.groups is not None
        held = ["abcdefghijkl".index(name) for name in fold.groups]
        assert not {3, 7} & {*held}
        assert agrees(fold, held)


GOOD: dict[str, Any] = {"image": pictures([*range(12)]), "label": LABELS}


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"image": GOOD["image"]}, r"no column of labels \(columns: image\); rename the one to use to 'label'"),
        ({"label": LABELS}, r"no column of images \(columns: label\); rename the one to use to 'image'"),
        ({"a": GOOD["image"], "b": GOOD["image"], "label": LABELS}, "several columns of images"),
        ({**GOOD, "label": [[0, 1]] * 12}, "a label must be a name or a whole number, one for each image"),
        ({**GOOD, "label": [0.5] * 12}, "a label must be a name or a whole number, one for each image"),
        ({**GOOD, "label": [None, *LABELS[1:]]}, "1 of 12 rows have no label"),
        ({**GOOD, "label": ["..", "b"] * 6}, r"class '\.\.' cannot be a folder's name"),
        ({**GOOD, "label": ["a/b", "a-b"] * 6}, "2 classes: at most 10000 with names of their own"),
    ],
)
def test_columns_that_do_not_fit_are_named(columns: dict[str, Any], reason: str, tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", **columns)
    with pytest.raises(UserError, match=reason):
        load_dataset("hf", tmp_path)


def test_labels_that_their_authors_keep_are_refused(tmp_path: Path) -> None:
    features = skin().features
    Dataset.from_dict(
        {"image": [Image.fromarray(PIXELS[0])] * 2, "center": [0, 0], "label": [-1, -1]}, features=features
    ).to_parquet(tmp_path / "test.parquet")
    skin().to_parquet(tmp_path / "train.parquet")
    with pytest.raises(UserError, match="2 of 2 rows have no label: leave such rows, or the fold, out"):
        load_dataset("hf", tmp_path)


def test_silo_and_group_columns_are_checked(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", **GOOD, center=["a", *[""] * 11])
    with pytest.raises(UserError, match=r"silo-column = 'centre': .* no such column: did you mean 'center'\?"):
        load_dataset("hf", tmp_path, origins=Origins(natural=True, silo_column="centre"))
    with pytest.raises(UserError, match=r"silo-column = '': .* no such column"):
        load_dataset("hf", tmp_path, origins=Origins(natural=True))
    with pytest.raises(UserError, match="group-column = 'center': 11 of 12 rows have no name or number there"):
        load_dataset("hf", tmp_path, origins=Origins(group_column="center"))


def test_other_folders_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no training images"):
        load_dataset("hf", tmp_path)
    with pytest.raises(UserError, match=f"there is no folder '{tmp_path / 'skim'}'"):
        load_dataset("hf:skim", tmp_path)
    write_parquet(tmp_path / "a" / "train.parquet", **GOOD)
    write_parquet(tmp_path / "b" / "train.parquet", **GOOD)
    with pytest.raises(UserError, match=r"holds several datasets \(a, b\): point at one of these folders"):
        load_dataset("hf", tmp_path)
    write_parquet(tmp_path / "a" / "test.parquet", **GOOD, more=LABELS)
    with pytest.raises(UserError, match="the folds have different columns"):
        load_dataset("hf:a", tmp_path)
    (tmp_path / "a" / "test.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"test\.parquet' cannot be read"):
        load_dataset("hf:a", tmp_path)


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"_data_files": [{"filename": "../../secret.arrow"}]}, "names no files in its folder"),
        ({"_data_files": []}, "names no files in its folder"),
        ({"_indices_data_files": [{"filename": "i.arrow"}]}, "rows in another order"),
        ([], "is damaged"),
    ],
)
def test_a_damaged_state_is_refused(state: Any, reason: str, tmp_path: Path) -> None:
    skin().save_to_disk(str(tmp_path))
    (tmp_path / "state.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match=reason):
        load_dataset("hf", tmp_path)


def test_a_torn_arrow_file_is_a_user_error(tmp_path: Path) -> None:
    skin().save_to_disk(str(tmp_path))
    (path,) = tmp_path.glob("*.arrow")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"\.arrow' cannot be read"):
        load_dataset("hf", tmp_path)
