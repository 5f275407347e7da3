from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from fedsynth.data.folder_layout import find_folds
from fedsynth.data.folder_listing import list_images
from fedsynth.data.image_folder import load_image_folder, read_image_folder
from fedsynth.errors import UserError


def tree(root: Path, *folders: str) -> Path:
    """Put one image into each folder."""
    for number, folder in enumerate(folders):
        (root / folder).mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), number).save(root / folder / f"{number}.png")
    return root


PAIRS = [
    ("train", "test"),
    ("Train", "Test"),
    ("TRAIN", "TEST"),
    ("Training", "Testing"),
    ("seg_train", "seg_test"),
    ("train_images", "test_images"),
    ("TrainImages", "TestImages"),
    ("train set", "test set"),
    ("trainset", "testset"),
    ("train", "val"),
    ("train", "valid"),
    ("Training", "Validation"),
    ("train", "eval"),
]


@pytest.mark.parametrize(("train", "test"), PAIRS)
def test_folds_under_other_words_and_cases_are_folds(tmp_path: Path, train: str, test: str) -> None:
    root = tree(tmp_path, *(f"{fold}/{name}" for fold in (train, test) for name in ("cat", "dog")))
    folds = find_folds(root)
    assert folds is not None
    assert (folds.train.name, folds.test.name) == (train, test)
    first, second = load_image_folder(root, None, None, False, 0)
    assert first.classes == second.classes == ("cat", "dog")
    assert sorted(first.images[:, 0, 0, 0]) == [0, 1]
    assert sorted(second.images[:, 0, 0, 0]) == [2, 3]
    # A silo holds one fold: which, it must say.
    with pytest.raises(UserError, match=f"holds the folds {train}, {test} instead of class folders: point at one"):
        read_image_folder(root)


def test_the_test_fold_goes_before_validation_and_what_lies_beside_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tree(tmp_path, *(f"{fold}/{name}" for fold in ("train", "valid", "test", "docs") for name in ("cat", "dog")))
    folds = find_folds(root)
    assert folds is not None
    assert str(folds) == "folds: train (training), test (test); not read beside them: docs, valid"
    with caplog.at_level("INFO", "fedsynth"):
        load_image_folder(root, None, None, False, 0)
    assert str(folds) in caplog.text


@pytest.mark.parametrize(
    "folders",
    [
        ("cat", "dog"),
        ("train", "car", "bus"),  # vehicles
        ("bullet train", "test tube"),
        ("(train)", "(test)"),  # how a released dataset names such classes
        ("crash_test", "train_station"),
        ("valid", "damaged"),
    ],
)
def test_classes_that_hold_a_word_of_folds_are_classes(tmp_path: Path, folders: tuple[str, ...]) -> None:
    root = tree(tmp_path, *folders)
    assert find_folds(root) is None
    assert list(list_images(root).files) == sorted(folders)


def test_names_that_are_known_are_classes(tmp_path: Path) -> None:
    root = tree(tmp_path, "train", "test")
    assert list(list_images(root, ("car", "test", "train")).files) == ["test", "train"]


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        (("Train/cat", "training/cat", "test/cat"), "more than one fold of a kind: Train, training, test"),
        (("a_train/x", "a_test/x", "b_train/x", "b_test/x"), r"several pairs of folds \(a_train and a_test; b_train"),
        (("fold1/cat", "fold2/cat", "fold3/cat"), r"parts of a cross-validation \(fold1, fold2, fold3\).*join"),
        (("Fold_1/cat", "Fold_2/cat"), "parts of a cross-validation"),
        (("Training/cat", "Training/dog"), "holds Training instead of class folders: .*needs both train/ and test/"),
        (("test/cat", "val/cat"), "holds test, val instead of class folders"),
        (("seg_train/cat", "seg_train/dog", "seg_pred"), r"seg_train' is named like a fold .*\(cat, dog\)"),
        (("train/cat", "train/dog", "cat"), r"train' is named like a fold and holds folders only \(cat, dog\)"),
        (("dataset/cat", "dataset/dog"), r"one folder, 'dataset', .*\(cat, dog\).*point at '.*dataset'"),
        (("dataset/train/cat", "dataset/test/cat"), r"one folder, 'dataset', .*\(test, train\).*point at"),
    ],
)
def test_other_layouts_are_refused_with_what_was_seen(tmp_path: Path, folders: tuple[str, ...], said: str) -> None:
    root = tree(tmp_path, *folders)
    with pytest.raises(UserError, match=said):
        load_image_folder(root, None, None, False, 0)


def test_one_folder_too_low_is_refused(tmp_path: Path) -> None:
    root = tree(tmp_path, "cat", "cat", "cat", "cat/patient7", "dog")
    with pytest.raises(UserError, match=r"3 images lie directly in '.*cat', 1 in its folders \(patient7\).*one above"):
        read_image_folder(root / "cat")
    with pytest.raises(UserError, match=r"no class folders in .*1 images lie directly in it.*point at the one above"):
        read_image_folder(root / "dog")


def test_what_may_be_meant_otherwise_is_said(tmp_path: Path) -> None:
    root = tree(tmp_path, "north/cat", "north/dog", "south/cat", "south/dog", ".")
    said = str(list_images(root))
    assert said.startswith("images: 4 files in 2 classes")
    assert "every class folder holds the same folders (cat, dog), read as part of it" in said
    assert "not read: 1 images that lie in no class folder" in said
