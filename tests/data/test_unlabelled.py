"""A folder of images without labels beside the class folders: no class, and read by nobody who does not ask for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedsynth.data import few_labels_silo, image_folder_spec, list_images, load_image_folder, read_image_folder
from fedsynth.data.image_folder import read_with_unlabelled
from fedsynth.errors import UserError
from fedsynth.spec import ImageSpec

SPEC = ImageSpec(1, 8, ("cat", "dog"))


def save(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), value).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images of each of two classes, and three without labels."""
    for number in range(10):
        save(tmp_path / "cat" / f"{number}.png", number)
        save(tmp_path / "dog" / f"{number}.png", 100 + number)
    for number in range(3):
        save(tmp_path / "unlabelled" / "scanner" / f"{number}.png", 200 + number)
    return tmp_path


@pytest.mark.parametrize("name", ["unlabelled", "Unlabeled"])
def test_it_is_no_class_and_the_log_says_how_many_images_there_are(folder: Path, name: str) -> None:
    (folder / "unlabelled").rename(folder / name)
    listing = list_images(folder)
    assert list(listing.files) == ["cat", "dog"]
    assert len(listing.unlabelled or ()) == 3
    assert "images: 20 files in 2 classes; no class: 3 unlabelled files, read where labels are few" in str(listing)
    assert image_folder_spec(folder) == SPEC
    images = read_image_folder(folder)
    assert (len(images), images.images.max()) == (20, 109)
    train, test = load_image_folder(folder, None, None, False, 0)
    assert (len(train) + len(test), train.classes) == (20, ("cat", "dog"))


def test_a_class_of_that_name_is_one_where_the_run_says_so(folder: Path) -> None:
    images = read_image_folder(folder, classes=("cat", "dog", "unlabelled"))
    assert images.label_counts().tolist() == [10, 10, 3]


def test_whoever_asks_gets_them_apart_and_what_a_class_holds_is_the_class(folder: Path) -> None:
    (folder / "unlabelled" / "again.png").symlink_to(folder / "cat" / "0.png")
    (folder / "unlabelled" / "torn.png").write_bytes(b"")
    given = {"image_size": 8, "channels": 1, "classes": SPEC.classes, "skip_bad_images": True}
    labelled, others = read_with_unlabelled(folder, **given)  # type: ignore[arg-type]
    assert np.array_equal(labelled.images, read_image_folder(folder).images)
    assert others.images[:, 0, 0, 0].tolist() == [200, 201, 202]
    assert others.classes == ("unlabelled",)
    assert "unlabelled/again.png is cat/0.png" in list_images(folder).doubles


def test_a_folder_of_nothing_else_is_refused_but_where_labels_are_few(folder: Path) -> None:
    for name in SPEC.classes:
        for path in (folder / name).iterdir():
            path.unlink()
        (folder / name).rmdir()
    with pytest.raises(UserError, match=r"no class folders in .*: its 3 images have no labels"):
        read_image_folder(folder)
    assert image_folder_spec(folder) == ImageSpec(1, 8, ())
    silo = few_labels_silo(folder, "north", SPEC, 0.1, 0)
    assert silo.unlabelled is not None
    assert (len(silo.train), len(silo.holdout), len(silo.unlabelled)) == (0, 0, 3)
    for path in (folder / "unlabelled" / "scanner").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="no images in its folder 'unlabelled'"):
        list_images(folder)


def test_two_folders_for_them_are_refused(folder: Path) -> None:
    save(folder / "unlabeled" / "0.png", 1)
    with pytest.raises(UserError, match="holds unlabeled, unlabelled, which mean the same: join them"):
        list_images(folder)


def test_which_images_are_held_out_depends_on_nothing_else_and_takes_their_patients_other_images(folder: Path) -> None:
    rows = [f"{name}/{n}.png,{name}-{n % 5}" for name in SPEC.classes for n in range(10)]
    rows += [f"unlabelled/scanner/{n}.png,cat-{n}" for n in range(3)]
    (folder / "metadata.csv").write_text("file_name,patient\n" + "\n".join(rows))
    silo = few_labels_silo(folder, "north", SPEC, 0.5, 1, group_column="patient")
    assert silo.unlabelled is not None
    assert silo.holdout.groups is not None
    held = {*silo.holdout.groups.tolist()}
    left = [200 + n for n in range(3) if f"cat-{n}" not in held]
    assert 0 < len(left) < 3
    assert silo.unlabelled.images[:, 0, 0, 0].tolist() == left
    (folder / "dog" / "9.png").unlink()
    fewer = few_labels_silo(folder, "north", SPEC, 0.5, 1, group_column="patient")
    assert np.array_equal(fewer.holdout.images, silo.holdout.images[silo.holdout.images[:, 0, 0, 0] != 109])
