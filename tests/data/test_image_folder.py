from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets
from image_examples import dicom
from PIL import Image

from fedsynth.data import ImageCache, image_cache, image_folder
from fedsynth.data.image_folder import image_folder_spec, load_image_folder, read_image_folder
from fedsynth.errors import FilesError, UserError


def save(path: Path, value: int = 0, size: tuple[int, int] = (8, 8), mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value,) * 3).save(path)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for value in range(5):
        save(tmp_path / "cat" / f"{value}.png", value)
        save(tmp_path / "Dog" / f"{value}.png", 100 + value)
    return tmp_path


def test_agrees_with_torchvision(tree: Path) -> None:
    save(tree / "cat" / "nested" / "deep.PNG", 77)
    (tree / "cat" / "notes.txt").write_text("not an image")
    reference = torchvision.datasets.ImageFolder(str(tree))
    data = read_image_folder(tree)
    assert list(data.classes) == reference.classes == ["Dog", "cat"]
    expected = sorted((label, np.asarray(image.convert("L")).tolist()) for image, label in reference)
    assert sorted(zip(data.labels.tolist(), data.images[..., 0].tolist(), strict=True)) == expected


@pytest.mark.parametrize("skip", [False, True])
def test_large_folders_lie_decoded_on_disk(skip: bool, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if skip:
        (tree / "cat" / "0.png").write_bytes(b"torn")
    in_memory = load_image_folder(tree, None, None, skip, 0)
    monkeypatch.setattr(image_cache, "LARGE_BYTES", 1)
    for _ in range(2):
        mapped = load_image_folder(tree, None, None, skip, 0, cache=ImageCache(tree / ".cache"))
        assert all(isinstance(fold.images, np.memmap) for fold in mapped)
        assert [fold.fingerprint() for fold in mapped] == [fold.fingerprint() for fold in in_memory]
    save(tree / "Dog" / "0.png", 50)
    changed = load_image_folder(tree, None, None, skip, 0, cache=ImageCache(tree / ".cache"))
    assert 50 in np.concatenate([fold.images.ravel() for fold in changed])
    assert len(list((tree / ".cache").iterdir())) == 2


def test_hidden_files_and_folders_are_ignored(tree: Path) -> None:
    (tree / "cat" / "._0.png").write_bytes(b"resource fork")
    save(tree / ".cache" / "x.png")
    save(tree / "cat" / ".thumbnails" / "x.png")
    assert len(read_image_folder(tree)) == 10


def test_one_size_for_all(tmp_path: Path, tree: Path) -> None:
    for number, (size, expected) in enumerate((((64, 64), 64), ((65, 65), 32), ((8, 12), 32))):
        save(tmp_path / f"{number}" / "a" / "0.png", size=size)
        assert read_image_folder(tmp_path / f"{number}").images.shape == (1, expected, expected, 1)
    save(tree / "cat" / "odd.png", size=(9, 9))
    assert read_image_folder(tree).images.shape[1:] == (32, 32, 1), "mixed sizes"


def test_every_kind_of_image_in_one_folder(tmp_path: Path) -> None:
    kinds = {
        "grey": Image.new("L", (20, 20), 50),
        "palette": Image.new("RGB", (9, 40), (1, 2, 3)).convert("P", palette=Image.Palette.ADAPTIVE),
        "sixteen": Image.fromarray(np.full((12, 12), 40 * 257, np.uint16)),  # 14 bits in use
    }
    for name, image in kinds.items():
        (tmp_path / name).mkdir()
        image.save(tmp_path / name / "0.png")
    data = read_image_folder(tmp_path, image_size=16)
    assert data.classes == ("grey", "palette", "sixteen")
    assert data.images[:, 8, 8].tolist() == [[50, 50, 50], [1, 2, 3], [160, 160, 160]]


def test_folders_without_classes_or_images_are_named(tree: Path) -> None:
    (tree / "emu").mkdir()
    (tree / "emu" / "readme.txt").write_text("soon")
    with pytest.raises(UserError, match="no images in class folder 'emu'"):
        read_image_folder(tree)
    with pytest.raises(UserError, match=r"no folder .*nowhere.*one folder per class"):
        read_image_folder(tree / "nowhere")
    save(tree / "emu" / "loose.png")
    with pytest.raises(UserError, match=r"no class folders .*1 images lie directly"):
        read_image_folder(tree / "emu")


def test_classes_fix_the_labels(tree: Path) -> None:
    data = read_image_folder(tree, classes=("ant", "cat", "cow", "Dog"))
    assert data.label_counts().tolist() == [0, 5, 0, 5]
    assert (data.images[data.labels == 3] >= 100).all()
    with pytest.raises(UserError, match=r"class folder 'cat' .* did you mean 'cats'"):
        read_image_folder(tree, classes=("cats", "Dog"))


def test_folds_are_used_where_they_are(tmp_path: Path) -> None:
    for value in range(3):
        save(tmp_path / "train" / "a" / f"{value}.png", value)
        save(tmp_path / "train" / "b" / f"{value}.png", value)
    save(tmp_path / "test" / "b" / "0.png", 200, size=(50, 30), mode="RGB")
    train, test = load_image_folder(tmp_path, None, None, False, 0)
    assert train.images.shape == (6, 8, 8, 1)
    assert test.images.shape == (1, 8, 8, 1)
    assert test.classes == train.classes == ("a", "b")
    assert test.labels.tolist() == [1]


def test_lone_fold_is_not_taken_for_a_class(tmp_path: Path) -> None:
    save(tmp_path / "train" / "a" / "0.png")
    with pytest.raises(UserError, match="needs both train/ and test/"):
        load_image_folder(tmp_path, None, None, False, 0)


def test_split_is_stratified_seeded_and_complete(tree: Path) -> None:
    train, test = load_image_folder(tree, None, None, False, 1)
    assert train.label_counts().tolist() == [4, 4]
    assert test.label_counts().tolist() == [1, 1]
    values = sorted([*train.images[:, 0, 0, 0].tolist(), *test.images[:, 0, 0, 0].tolist()])
    assert values == [0, 1, 2, 3, 4, 100, 101, 102, 103, 104]
    fingerprints = [load_image_folder(tree, None, None, False, seed)[1].fingerprint() for seed in (1, 1, 2, 3, 4)]
    assert fingerprints[0] == fingerprints[1]
    assert len(set(fingerprints)) > 1


def test_twelve_bits_of_the_field_use_all_shades(field: Path) -> None:
    ramp = np.linspace(0, 4095, 256).astype(np.uint16).reshape(16, 16)
    for image in read_image_folder(field / "twelve-bits").images:
        assert (image[..., 0] == np.rint(ramp * (255 / 4095))).all()


def test_photos_and_scans_of_the_field_are_read(field: Path) -> None:
    turned, stored = (read_image_folder(field / name).label_counts().tolist() for name in ("exif", "profile"))
    assert turned == stored == [5, 4]


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("pages", r"stack\.tif \(3 pages: .*first-page-only=true"),
        ("clear", r"clear\.png \(every pixel is transparent"),
        ("suffixes", r"1 of 6 images cannot be read: .*scan\.dcm \(DICOM that cannot be parsed"),
    ],
)
def test_files_of_the_field_that_cannot_be_read_are_named(field: Path, case: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_image_folder(field / case)
    counts = read_image_folder(field / case, skip_bad_images=True).label_counts().tolist()
    assert counts == {"pages": [4, 4], "clear": [4, 4], "suffixes": [4, 1]}[case]


def test_files_that_cannot_be_read_are_said_when_a_silo_starts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "scan.dcm").write_bytes(dicom(np.zeros((2, 2), np.uint16)))
    monkeypatch.setattr("fedsynth.data.dicom.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"none of the 1 images .* such as cat/scan\.dcm \(DICOM, .* pip install 'feds"):
        image_folder_spec(tmp_path)
    save(tmp_path / "cat" / "0.png")
    with caplog.at_level(logging.WARNING, logger="fedsynth"):
        assert image_folder_spec(tmp_path).channels == 1
    assert "1 files cannot be read as images (cat/scan.dcm; the first: DICOM, which needs one more" in caplog.text


def test_images_that_do_not_fit_into_memory_are_not_counted_to_others(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise MemoryError("Unable to allocate 1 TiB for an array with shape (7, 4096, 4096, 1)")

    monkeypatch.setattr(image_folder, "decode_files", full)
    with pytest.raises(FilesError, match=r"10 images in .*: image-size = 4096: .* do not fit into memory") as caught:
        read_image_folder(tree, image_size=4096)
    assert "10" not in caught.value.elsewhere
