from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedsynth.data import CELEBA_CLASSES, load_dataset
from fedsynth.errors import UserError

HEADER = "5_o_Clock_Shadow Eyeglasses Male Smiling Young"
# name, Eyeglasses, Male, Smiling, fold, expected class
ROWS = [
    ("000001.jpg", -1, -1, 1, 0, "female-smiling-no-glasses"),
    ("000002.jpg", 1, 1, -1, 0, "male-not-smiling-glasses"),
    ("000003.jpg", -1, 1, 1, 1, "male-smiling-no-glasses"),
    ("000004.jpg", 1, -1, -1, 2, "female-not-smiling-glasses"),
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    lines = [f"{name}  -1 {glasses} {male} {smile}  1" for name, glasses, male, smile, _, _ in ROWS]
    (folder / "list_attr_celeba.txt").write_text("\n".join([str(len(ROWS)), HEADER, *lines]) + "\n")
    (folder / "list_eval_partition.txt").write_text("".join(f"{row[0]} {row[4]}\n" for row in ROWS))
    for number, row in enumerate(ROWS, start=1):
        pixels = np.full((218, 178, 3), 255, np.uint8)
        pixels[20:198] = 10 * number
        Image.fromarray(pixels).save(folder / "img_align_celeba" / row[0], quality=95)
    return tmp_path


def test_folds_and_labels_follow_the_lists(root: Path) -> None:
    train, test = load_dataset("celeba", root)
    assert [CELEBA_CLASSES[label] for label in train.labels] == [ROWS[0][5], ROWS[1][5]]
    assert [CELEBA_CLASSES[label] for label in test.labels] == [ROWS[3][5]]
    assert train.classes == CELEBA_CLASSES


def test_images_are_the_central_178_pixels_resized(root: Path) -> None:
    train, test = load_dataset("celeba", root)
    assert train.images.shape == (2, 32, 32, 3)
    # The white bands above row 20 and below row 198 are cropped away; JPEG rings a little at their edge.
    assert np.abs(train.images[1, 2:-2].astype(int) - 20).max() <= 3
    assert np.abs(test.images[0, 2:-2].astype(int) - 40).max() <= 3
    assert load_dataset("celeba", root, image_size=16, channels=1)[0].images.shape == (2, 16, 16, 1)


def test_missing_image_is_named_or_skipped(root: Path) -> None:
    (root / "celeba" / "img_align_celeba" / "000002.jpg").unlink()
    with pytest.raises(UserError, match=r"000002\.jpg \(no such file\)"):
        load_dataset("celeba", root)
    train, _ = load_dataset("celeba", root, skip_bad_images=True)
    assert [CELEBA_CLASSES[label] for label in train.labels] == [ROWS[0][5]]


def test_malformed_lists_and_empty_folds_are_named(root: Path) -> None:
    attributes = root / "celeba" / "list_attr_celeba.txt"
    text = attributes.read_text()
    attributes.write_text(text + "000005.jpg 1 1\n")
    with pytest.raises(UserError, match=r"line 7 of .*list_attr_celeba\.txt.* has 3 fields, not 6"):
        load_dataset("celeba", root)
    attributes.write_text(text.replace("Male", "Mail"))
    with pytest.raises(UserError, match="lacks the attribute Male"):
        load_dataset("celeba", root)
    attributes.write_text(text)
    folds = root / "celeba" / "list_eval_partition.txt"
    folds.write_text(folds.read_text().replace(" 2\n", " 1\n"))
    with pytest.raises(UserError, match="no image of fold 2"):
        load_dataset("celeba", root)
