from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from class_folders import write_images

from fedsynth.data.duplicate_images import describe_between_silos
from fedsynth.data.image_folder import load_image_folder, read_image_folder
from fedsynth.data.labelled_images import LabelledImages
from fedsynth.data.silo_images import folder_silo


def copy(source: Path, target: Path) -> None:
    target.write_bytes(source.read_bytes())


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged but for the lists of files."""
    return [line for line in caplog.messages if ": images: " not in line and "folds: " not in line]


@pytest.fixture(autouse=True)
def logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "fedsynth")


def test_repeats_and_label_conflicts_within_a_folder_are_said_with_files(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_images(tmp_path / "images", {"cat": 4, "dog": 4})
    read_image_folder(root)
    assert lines(caplog) == []
    copy(root / "cat" / "0.png", root / "cat" / "7.png")
    copy(root / "cat" / "1.png", root / "dog" / "9.png")
    data = read_image_folder(root)
    assert len(data) == 10, "counted, not left out"
    assert lines(caplog) == [
        f"{root}: at 8 x 8 pixels, 2 of 10 images repeat another one, as cat/7.png does cat/0.png; 1 picture stands"
        " under two classes or more, such as cat/1.png and dog/9.png: one of the labels is wrong"
    ]


def test_a_bad_image_that_is_left_out_shifts_no_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_images(tmp_path / "images", {"cat": 4, "dog": 4})
    (root / "cat" / "0.png").write_bytes(b"torn")
    copy(root / "dog" / "1.png", root / "dog" / "2.png")
    read_image_folder(root, skip_bad_images=True)
    assert "1 of 7 images repeat another one, as dog/2.png does dog/1.png" in lines(caplog)[-1]


def test_test_images_among_training_images_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "data"
    write_images(root / "Training", {"cat": 4, "dog": 4})
    write_images(root / "Testing", {"cat": 2, "dog": 2})
    copy(root / "Training" / "dog" / "1.png", root / "Testing" / "cat" / "5.png")
    load_image_folder(root, None, None, False, 0)
    assert lines(caplog) == [f"{root}: 1 of 5 test images are training images too"]


def test_a_split_that_parts_a_picture_s_copies_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_images(tmp_path / "images", {"cat": 1, "dog": 5})
    for number in range(1, 5):
        copy(root / "cat" / "0.png", root / "cat" / f"{number}.png")
    load_image_folder(root, None, None, False, 0)
    assert lines(caplog)[-1] == f"{root}: 1 of 2 test images are training images too"
    folder_silo(root, "clinic", 0.2, 0)
    assert lines(caplog)[-1] == "clinic: 1 of 2 held-out images are training images too"


def test_pictures_at_two_silos_are_said() -> None:
    images = np.arange(8, dtype=np.uint8)[:, None, None, None] * np.ones((8, 2, 2, 1), np.uint8)
    images[5], images[6] = images[0], images[2]
    labels = np.array([0, 0, 0, 0, 1, 1, 0, 1])
    train = LabelledImages(images, labels, ("cat", "dog"))
    test = LabelledImages(
        images[[0, 3, 7]] + np.array([0, 100, 0], np.uint8)[:, None, None, None], labels[:3], ("cat", "dog")
    )
    silos = [np.array([0, 1, 4]), np.array([5, 6]), np.array([2, 3])]  # nobody holds image 7
    said = describe_between_silos(train, test, silos)
    assert said == (
        "1 of 3 test images are training images too; 2 pictures stand at more than one silo; 1 picture stands under two"
        " classes or more"
    )
    assert describe_between_silos(train, test, [np.array([1, 2])]) == ""
