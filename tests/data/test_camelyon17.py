from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedsynth.config import RunConfig, Scalar
from fedsynth.data import ImageCache, Origins, image_cache, load_dataset, load_federation
from fedsynth.errors import UserError

HEADER = ",patient,node,x_coord,y_coord,tumor,slide,center,split"
PATIENTS = 5
"""Patients of every hospital, with two patches each, one of which holds tumour."""


def patch(number: int) -> np.ndarray:
    """A ring of another colour around the central 32 pixels, whose value is the patch's number."""
    pixels = np.full((96, 96, 3), 200, np.uint8)
    pixels[32:64, 32:64] = number
    pixels[32, 32] = 255
    return pixels


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "camelyon17_v1.0"
    lines = [HEADER]
    number = 0
    for center in range(3):
        for patient in range(PATIENTS * center, PATIENTS * (center + 1)):
            node = f"patient_{patient:03}_node_4"
            (folder / "patches" / node).mkdir(parents=True)
            for tumor in (0, 1):
                x, y = 3328 + number, 21792
                lines.append(f"{number},{patient:03},4,{x},{y},{tumor},{patient + 30},{center},0")
                Image.fromarray(patch(number)).save(folder / "patches" / node / f"patch_{node}_x_{x}_y_{y}.png")
                number += 1
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_images_are_the_centre_of_which_the_label_speaks(root: Path) -> None:
    for data_root in (root, root / "camelyon17_v1.0"):
        train, test = load_dataset("camelyon17", data_root)
        assert len(train) + len(test) == 30
        for fold in (train, test):
            assert fold.images.shape[1:] == (32, 32, 3)
            numbers = fold.images[:, 16, 16, 0]
            assert (fold.images[:, 1:] == numbers[:, None, None, None]).all()
            assert (fold.images[:, 0, 0] == 255).all()
            assert (fold.labels == numbers % 2).all()
    assert train.classes == ("normal", "tumor")


@pytest.mark.parametrize("size", [8, 33, 64, 96])
def test_other_sizes_are_cropped_and_never_resized(size: int, root: Path) -> None:
    train, _ = load_dataset("camelyon17", root, image_size=size)
    first = (96 - size) // 2
    for image in train.images:
        number = int(image[size // 2, size // 2, 0])
        assert (image == patch(number)[first : first + size, first : first + size]).all()


@pytest.mark.parametrize("column", ["", "slide"])
def test_hospitals_are_silos_and_no_patient_is_on_two_sides(column: str, root: Path) -> None:
    keys: dict[str, Scalar] = {
        "dataset": "camelyon17",
        "data-root": str(root),
        "partition": "natural",
        "group-column": column,
    }
    federation = load_federation(RunConfig.from_run_config({**keys, "num-clients": 3}))
    assert federation.silo_names == ("0", "1", "2")
    train, test = federation.train, federation.test
    assert train.groups is not None
    assert test.groups is not None
    assert len(test) == 6
    assert not {*train.groups} & {*test.groups}
    assert {len(name) for name in train.groups} == {2 if column else 3}
    for silo, part in enumerate(federation.parts):
        assert {int(image[16, 16, 0]) // 10 for image in train.images[part]} == {silo}
    left_out = load_federation(RunConfig.from_run_config({**keys, "num-clients": 2, "test-silo": "2"}))
    assert sorted(left_out.test.images[:, 16, 16, 0].tolist()) == [*range(20, 30)]


def test_large_sets_lie_in_the_cache(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load_dataset("camelyon17", root)
    monkeypatch.setattr(image_cache, "LARGE_BYTES", 1)
    for _ in range(2):
        mapped = load_dataset("camelyon17", root, cache=ImageCache(root / "cache"))
        assert [fold.fingerprint() for fold in mapped] == [fold.fingerprint() for fold in whole]
        assert isinstance(mapped[0].images, np.memmap)
    assert len(list((root / "cache").iterdir())) == 1


def test_unreadable_patches_are_named_or_left_out(root: Path) -> None:
    first, second, *_ = sorted((root / "camelyon17_v1.0" / "patches").rglob("*.png"))
    first.unlink()
    Image.fromarray(patch(0)[:90]).save(second)
    with pytest.raises(UserError, match=r"2 of 30 images .* \(no such file\); .* \(not 96 x 96 pixels of 8 bits\)"):
        load_dataset("camelyon17", root)
    assert sum(map(len, load_dataset("camelyon17", root, skip_bad_images=True))) == 28


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("0,../../a,4,1,1,0,30,0,0", r"row 31: \['\.\./\.\./a', '4', .*: fetch it again"),
        ("0,004,4,1,1,2,30,0,0", "row 31"),
        ("0,004,4", "row 31"),
    ],
)
def test_malformed_tables_are_refused(line: str, reason: str, root: Path) -> None:
    path = root / "camelyon17_v1.0" / "metadata.csv"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(UserError, match=reason):
        load_dataset("camelyon17", root)


def test_other_keys_and_missing_files_are_named(root: Path) -> None:
    with pytest.raises(UserError, match="image-size = 128: patches of Camelyon17 have 96 pixels"):
        load_dataset("camelyon17", root, image_size=128)
    with pytest.raises(UserError, match=r"silo-column = 'centre': .* did you mean 'center'\?"):
        load_dataset("camelyon17", root, origins=Origins(natural=True, silo_column="centre"))
    with pytest.raises(UserError, match="group-column = 'node': of camelyon17 it is one of patient, slide"):
        load_dataset("camelyon17", root, origins=Origins(group_column="node"))
    path = root / "camelyon17_v1.0" / "metadata.csv"
    path.write_text(path.read_text().replace("tumor", "tumour"))
    with pytest.raises(UserError, match=r"metadata\.csv' has no tumor: fetch"):
        load_dataset("camelyon17", root)
    path.unlink()
    with pytest.raises(UserError, match=r"put metadata\.csv and patches/ of Camelyon17-WILDS into"):
        load_dataset("camelyon17", root)
