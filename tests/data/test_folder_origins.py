from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedsynth.config import RunConfig
from fedsynth.data import LabelledImages, Origins, load_federation, natural_silos, origins_in_folders
from fedsynth.errors import UserError

LABORATORIES = Path(__file__).resolve().parents[3] / "shared" / "data" / "three-laboratories"
CLASSES = ("blast", "lymphocyte")


def save(path: Path, number: int) -> Path:
    """Write an image that holds its number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), number, np.uint8)).save(path)
    return path


def numbers(data: LabelledImages) -> list[int]:
    return data.images[:, 0, 0, 0].tolist()


def write_table(root: Path, rows: list[dict[str, Any]]) -> None:
    with (root / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


Given = tuple[Path, dict[int, tuple[str, str, str]]]


@pytest.fixture
def given(tmp_path: Path) -> Given:
    """Two hospitals of 6 patients with 10 images each; the second has one class. Number -> silo, class, patient."""
    known = {}
    for number in range(120):
        patient = number % 12
        silo = "south" if patient < 6 else "north"
        known[number] = (silo, CLASSES[number // 60 if silo == "south" else 1], f"{silo}-{patient}")
    return tmp_path, known


def in_folders(given: Given) -> dict[str, Any]:
    """<silo>/<class>/<image>, patients in a table."""
    root, known = given
    files = {k: save(root / silo / name / f"{k}.png", k) for k, (silo, name, _) in known.items()}
    write_table(root, [{"file_name": files[k].relative_to(root), "patient": known[k][2]} for k in reversed(known)])
    return {}


def in_columns(given: Given) -> dict[str, Any]:
    """Images in one folder; the table says everything."""
    root, known = given
    rows = []
    for k, (silo, name, patient) in known.items():
        save(root / "images" / f"{k}.png", k)
        rows.append({"file_name": f"images/{k}.png", "label": name, "hospital": silo, "patient": patient})
    write_table(root, rows)
    return {"silo-column": "hospital"}


def in_classes(given: Given) -> dict[str, Any]:
    """<class>/<image>; the table says the silo."""
    root, known = given
    rows = []
    for k, (silo, name, patient) in known.items():
        save(root / name / f"{k}.png", k)
        rows.append({"file_name": f"{name}/{k}.png", "hospital": silo, "patient": patient})
    write_table(root, rows)
    return {"silo-column": "hospital"}


def in_folds(given: Given) -> dict[str, Any]:
    """train and test, each with <silo>/<class>/<image>."""
    root, known = given
    rows = []
    for k, (silo, name, patient) in known.items():
        file = f"{'test' if patient in ('south-0', 'north-6') else 'train'}/{silo}/{name}/{k}.png"
        save(root / file, k)
        rows.append({"file_name": file, "patient": patient})
    write_table(root, rows)
    return {}


def config_of(root: Path, **settings: Any) -> RunConfig:
    given = {"dataset": "imagefolder", "data-root": str(root), "partition": "natural", "num-clients": 2, **settings}
    return RunConfig.from_run_config(given)


@pytest.mark.parametrize("layout", [in_folders, in_columns, in_classes, in_folds])
def test_silos_classes_and_groups_are_those_of_the_layout(layout: Callable[[Given], Any], given: Given) -> None:
    root, known = given
    settings = {**layout(given), "group-column": "patient", "holdout-fraction": 0.2}
    config = config_of(root, **settings)
    federation = load_federation(config)
    assert federation.silo_names == natural_silos(config) == ("north", "south")
    assert federation.spec.classes == CLASSES
    silos = [federation.silo(k, config) for k in range(2)]
    sides = [federation.test, *(side for silo in silos for side in (silo.train, silo.holdout))]
    seen: Counter[int] = Counter()
    for side in sides:
        assert len(side), "every fold and hold-out has images"
        assert side.silos is not None
        assert side.groups is not None
        seen.update(numbers(side))
        names = [side.classes[label] for label in side.labels]
        assert [known[k] for k in numbers(side)] == [*zip(side.silos, names, side.groups, strict=True)]
    assert seen == dict.fromkeys(known, 1), "every image is in one place"
    patients = [{known[k][2] for k in numbers(side)} for side in sides]
    assert sum(map(len, patients)) == 12, "and every patient"
    assert silo_names(known, federation.test) == {"north", "south"}
    again = load_federation(config)
    assert again.train.fingerprint() == federation.train.fingerprint()
    assert again.manifest(config) == federation.manifest(config)
    other = load_federation(config_of(root, **settings, **{"test-silo": "north", "num-clients": 1}))
    assert other.silo_names == ("south",)
    assert silo_names(known, other.test) == {"north"}
    assert len(other.test) == 60
    assert silo_names(known, other.train) == {"south"}


def silo_names(known: dict[int, tuple[str, str, str]], data: LabelledImages) -> set[str]:
    return {known[k][0] for k in numbers(data)}


def test_groups_stay_whole_in_a_random_partition_of_class_folders(given: Given) -> None:
    root, known = given
    in_classes(given)
    federation = load_federation(config_of(root, **{"partition": "iid", "group-column": "patient", "num-clients": 3}))
    assert federation.silo_names == ()
    sides = [federation.test, *(federation.train.subset(part) for part in federation.parts)]
    assert sum(len({known[k][2] for k in numbers(side)}) for side in sides) == 12


def test_a_table_is_read_only_when_a_column_of_it_is_asked_for(given: Given) -> None:
    root, known = given
    in_folders(given)
    (root / "metadata.csv").write_text("no table")
    federation = load_federation(config_of(root))
    assert sorted(numbers(federation.train) + numbers(federation.test)) == sorted(known)
    assert federation.train.groups is None


def test_a_bad_image_takes_its_silo_and_group_along(given: Given) -> None:
    root, known = given
    settings = {**in_columns(given), "group-column": "patient", "skip-bad-images": True}
    (root / "images" / "17.png").write_bytes(b"torn")
    (root / "images" / "3.png").unlink()
    federation = load_federation(config_of(root, **settings))
    for side in (federation.train, federation.test):
        assert [*side.groups] == [known[k][2] for k in numbers(side)]  # type: ignore[misc]
    assert len(federation.train) + len(federation.test) == 118


@pytest.mark.parametrize(
    ("file", "settings", "said"),
    [
        (
            "cat/0.png",
            {},
            "the folder '.*cat' holds 1 images and no class folders: the layout is <silo>/<class>/<image>",
        ),
        ("north/Blast/0.png", {}, "class folders 'Blast', 'blast' of the silos in .* are probably the same"),
        ("north/lymphocyte/new.png", {"group-column": "patient"}, "no row for 1 images, such as north/lymphocyte/new"),
        ("", {"silo-column": "hospital"}, "has no column 'hospital'"),
        ("", {"num-clients": 10}, r"num-clients = 10: there are 2 natural silos \(north, south\): set num-clients = 2"),
    ],
)
def test_another_layout_is_refused_with_the_fix(file: str, settings: dict[str, Any], said: str, given: Given) -> None:
    root, _ = given
    in_folders(given)
    if file:
        save(root / file, 0)
    with pytest.raises(UserError, match=said):
        load_federation(config_of(root, **settings))


def test_labels_become_folders(given: Given) -> None:
    root, _ = given
    settings = {"silo-column": "hospital", "num-clients": 1}
    rows = [{"file_name": save(root / f"{k}.png", k).name, "label": "a/b", "hospital": "x"} for k in range(3)]
    write_table(root, rows)
    assert load_federation(config_of(root, **settings)).spec.classes == ("a-b",)
    write_table(root, [{**rows[0], "label": ".."}, *rows[1:]])
    with pytest.raises(UserError, match=r"class '\.\.' cannot be a folder's name: rename it"):
        load_federation(config_of(root, **settings))


@pytest.mark.skipif(not LABORATORIES.is_dir(), reason="no laboratories in ../shared/data")
@pytest.mark.parametrize("left_out", ["", "cellavision"])
def test_three_laboratories(left_out: str) -> None:
    names = [name for name in ("bccd", "cellavision", "tecom") if name != left_out]
    config = config_of(LABORATORIES, **{"num-clients": len(names), "test-silo": left_out})
    federation = load_federation(config)
    assert federation.silo_names == tuple(names)
    assert federation.spec.shape == (3, 64, 64)
    assert federation.spec.classes == ("eosinophil", "lymphocyte", "monocyte", "neutrophil")
    counts = {"bccd": 348, "cellavision": 97, "tecom": 299}
    assert len(federation.train) + len(federation.test) == 744
    if left_out:
        assert len(federation.test) == 97
        assert [len(part) for part in federation.parts] == [348, 299]
    else:
        # A fifth of each, rounded up.
        assert [counts[name] - len(part) for name, part in zip(names, federation.parts, strict=True)] == [70, 20, 60]
    assert federation.describe_silos().startswith("silo-0 is bccd, silo-1 is ")


@pytest.mark.parametrize(
    ("files", "natural"),
    [
        (["north/blast/0.png", "south/lymphocyte/1.png"], True),
        (["train/north/blast/0.png", "train/south/blast/1.png", "test/north/blast/2.png"], True),
        (["north/blast/0.png"], True),
        (["blast/lymphocyte/0.png", "lymphocyte/blast/1.png"], False),
        (["north/blast/0.png", "south/1.png"], False),
        (["north/blast/0.png", "south/grade/1.png"], False),
        (["north/blast/0.png", "south/blast/1.png", "south/2.png"], False),
        (["train/blast/0.png", "test/blast/1.png"], False),
        (["north/grade/0.png"], False),
    ],
)
def test_known_class_names_tell_where_silos_folders_are(files: list[str], natural: bool, tmp_path: Path) -> None:
    for number, file in enumerate(files):
        save(tmp_path / file, number)
    assert origins_in_folders(tmp_path, CLASSES) == Origins(natural=natural)
    assert not origins_in_folders(tmp_path / "absent", CLASSES).natural
