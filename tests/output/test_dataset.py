from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pytest
import yaml
from hostile_text import CLEARED_SCREEN, HOSTILE, unshown
from PIL import Image
from torchvision.datasets import ImageFolder

from fedsynth.errors import UserError
from fedsynth.output import SyntheticDataset, describe_dataset, read_dataset, write_dataset
from fedsynth.output.class_folders import folder_names

DIGITS = tuple(str(i) for i in range(11))
AWKWARD = ("zebra/horse", "zebra_horse", "test", "..", "2024-05-17", "T-shirt & <top>", "b" * 300)


def make_dataset(
    classes: Sequence[str] = DIGITS, channels: int = 1, number: int = 30, **provenance: Any
) -> SyntheticDataset:
    rng = np.random.default_rng(3)
    labels = np.concatenate([np.arange(len(classes)), rng.integers(0, len(classes), number - len(classes))])
    images = rng.integers(0, 256, (number, 6, 5, channels), dtype=np.uint8)
    return SyntheticDataset(images, labels.astype(np.int64), tuple(classes), provenance)


def load_with_datasets(path: Path, cache: Path) -> Any:
    return datasets.load_dataset("imagefolder", data_dir=str(path), cache_dir=str(cache))


def test_reading_inverts_writing(tmp_path: Path) -> None:
    for channels, classes in ((1, DIGITS), (3, AWKWARD)):
        dataset = make_dataset(classes, channels, method="dfd", seed=7, settings={"rounds": 25})
        write_dataset(dataset, tmp_path / "synthetic")
        again = read_dataset(tmp_path / "synthetic")
        assert np.array_equal(again.images, dataset.images)
        assert np.array_equal(again.labels, dataset.labels)
        assert again.labels.dtype == np.int64
        assert again.classes == dataset.classes
        assert again.provenance == dataset.provenance


@pytest.mark.parametrize("classes", [AWKWARD, ("dev", "eval")])
def test_torchvision_and_datasets_see_the_same_labels(tmp_path: Path, classes: tuple[str, ...]) -> None:
    dataset = make_dataset(classes)
    write_dataset(dataset, tmp_path / "synthetic")
    wanted = {
        image.tobytes(): folder_names(classes)[k] for image, k in zip(dataset.images, dataset.labels, strict=True)
    }

    by_torchvision = ImageFolder(tmp_path / "synthetic", loader=lambda file: np.asarray(Image.open(file)))
    assert {image.tobytes(): by_torchvision.classes[index] for image, index in by_torchvision} == wanted

    by_datasets = load_with_datasets(tmp_path / "synthetic", tmp_path / "cache")
    assert list(by_datasets) == ["train"]
    rows = by_datasets["train"]
    assert {np.asarray(row["image"]).tobytes(): row["label"] for row in rows} == wanted
    assert rows["label"] == [folder_names(classes)[label] for label in dataset.labels]


def test_a_class_without_images_has_no_folder_and_the_card_says_so(tmp_path: Path) -> None:
    dataset = SyntheticDataset(np.zeros((2, 4, 4, 1), np.uint8), np.array([0, 2]), ("a", "b", "c"), {})
    write_dataset(dataset, tmp_path / "synthetic")
    assert ImageFolder(tmp_path / "synthetic").classes == ["a", "c"]
    assert read_dataset(tmp_path / "synthetic").classes == ("a", "b", "c")
    assert "| b | none | 0 |" in (tmp_path / "synthetic" / "README.md").read_text()


def test_the_same_dataset_gives_the_same_bytes(tmp_path: Path) -> None:
    def contents(name: str) -> dict[str, bytes]:
        write_dataset(make_dataset(channels=3), tmp_path / name)
        files = [file for file in (tmp_path / name).rglob("*") if file.is_file()]
        return {str(file.relative_to(tmp_path / name)): file.read_bytes() for file in files}

    first, second = contents("one"), contents("two")
    assert len(first) == 30 + 3
    assert first == second


def test_an_earlier_dataset_is_replaced_whole(tmp_path: Path) -> None:
    write_dataset(make_dataset(), tmp_path / "synthetic")
    write_dataset(make_dataset(("only",), number=1), tmp_path / "synthetic")
    assert [file.name for file in (tmp_path / "synthetic").rglob("*.png")] == ["00000.png"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["synthetic"]


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="not empty"):
        write_dataset(make_dataset(), tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_too_little_space_is_seen_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="not enough disk space"):
        write_dataset(make_dataset(), tmp_path / "synthetic")
    assert list(tmp_path.iterdir()) == []


def test_reading_names_the_folder_and_the_damage(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent.*not a dataset written by fedsynth.*provenance\.json"):
        read_dataset(tmp_path / "absent")
    write_dataset(make_dataset(), tmp_path / "synthetic")
    (tmp_path / "synthetic" / "00" / "00000.png").write_bytes(b"not a picture")
    with pytest.raises(UserError, match=r"00000\.png"):
        read_dataset(tmp_path / "synthetic")


class Card(NamedTuple):
    header: dict[str, Any]
    text: str


def card_of(dataset: SyntheticDataset, path: Path) -> Card:
    write_dataset(dataset, path)
    _, header, text = (path / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return Card(yaml.safe_load(header), text)


def test_the_card_has_the_hub_header(tmp_path: Path) -> None:
    card = card_of(make_dataset(), tmp_path / "a")
    assert card.header["task_categories"] == ["image-classification"]
    assert card.header["size_categories"] == ["n<1K"]
    assert "synthetic" in card.header["tags"]
    assert (card.header["license"], card.header["annotations_creators"]) == ("unknown", ["machine-generated"])
    assert card_of(make_dataset(license="cc-by-4.0"), tmp_path / "c").header["license"] == "cc-by-4.0"
    tiny = np.zeros((1000, 1, 1, 1), np.uint8)
    thousand = SyntheticDataset(tiny, np.zeros(1000, np.int64), ("a",), {})
    assert card_of(thousand, tmp_path / "b").header["size_categories"] == ["1K<n<10K"]


def test_the_card_tells_size_origin_counts_and_limits(tmp_path: Path) -> None:
    dataset = make_dataset(
        method="dfd",
        seed=7,
        silos=[{"n": 3}] * 4,
        software={"torch": "2.9"},
        settings={"rounds": 25},
        caveats=["Simulated | silos."],
    )
    text = card_of(dataset, tmp_path / "a").text
    for words in (
        "30 synthetic grey images of 6 x 5 pixels in 11 classes",
        "from the images of 4 silos",
        "method: dfd",
        "seed: 7",
        "torch: 2.9",
        '"rounds": 25',
        "not differentially private",
        "memorisation",
        "Simulated \\| silos.",
    ):
        assert words in text
    assert f"| 3 | 03 | {int((dataset.labels == 3).sum())} |" in text


def test_the_card_tells_quality_privacy_and_how_to_cite(tmp_path: Path) -> None:
    text = card_of(make_dataset(), tmp_path / "bare").text
    for words in ("Not measured.", "differential privacy: none", "inference on the models: not measured", "@software{"):
        assert words in text
    row = {"synthetic": 0.893, "real": None, "better": "higher", "N": 1000, "in": "a|b"}
    attack = {"synthetic": 0.7, "highest": 0.96, "N": 300, "in": "noise predictions"}
    dataset = make_dataset(
        quality={"accuracy-cnn": row, "epsilon-membership-auc": attack},
        verdict="Usable.",
        privacy={"privacy-epsilon": 7.9999, "privacy-delta": 1e-5, "statement": ["Proven."]},
        settings={"dataset": "mnist"},
        software={"fedsynth": "9.8"},
    )
    text = card_of(dataset, tmp_path / "a").text
    for words in (
        "Usable.",
        r"| accuracy-cnn | 0.893 | - | higher | 1,000 | a\|b |",
        "differential privacy: ε = 8, δ = 1e-05, of the training at each silo",
        "inference on the models: AUC 0.700, 0.960 at the model that tells most",
        "inference on the images: not measured",
        "own source (mnist)",
        "version = {9.8}",
        "Proven.",
    ):
        assert words in text


def test_the_card_of_a_secure_sum_says_towards_whom_each_epsilon_holds(tmp_path: Path) -> None:
    """Noise is on the sum alone: no silo's own training has either ε."""
    told = {"privacy-towards": "a server that 1 silo may help", "privacy-epsilon-public": 6.2101}
    privacy = {"privacy-epsilon": 7.9999, "privacy-delta": 1e-5, "statement": ["Proven."], **told}
    text = card_of(make_dataset(privacy=privacy), tmp_path / "a").text
    assert "ε = 8 towards a server that 1 silo may help, 6.211 towards those who see the images and the model" in text
    assert "δ = 1e-05, of the training by all silos" in text
    assert "at each silo" not in text


def test_a_measured_dataset_is_described_anew(tmp_path: Path) -> None:
    path = tmp_path / "synthetic"
    write_dataset(make_dataset(seed=1), path)
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*.png")}
    describe_dataset(make_dataset(seed=1, verdict="Usable.", quality={"recall": {"synthetic": 0.5}}), path)
    assert read_dataset(path).provenance["quality"] == {"recall": {"synthetic": 0.5}}
    assert "| recall | 0.500 |" in (path / "README.md").read_text()
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*.png")} == before


def test_class_names_cannot_break_the_card(tmp_path: Path) -> None:
    text = card_of(make_dataset(("<script>", "a|b", "# x\ny")), tmp_path / "a").text
    assert "<script>" not in text
    assert r"| a\|b | a\_b |" in text
    assert "| \\# x y |" in text
    text = card_of(make_dataset((HOSTILE, CLEARED_SCREEN, "$x$ ~~y~~")), tmp_path / "b").text
    assert not unshown(text)
    assert "<script>" not in text
    assert [line.count(" | ") for line in text.splitlines() if line.startswith("|")] == [2, 0, 2, 2, 2]
    assert r"| \\x1b\[2J\\x1b\]0;title\\x07 |" in text
    assert r"| \$x\$ \~\~y\~\~ |" in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": np.zeros((2, 4, 4, 1), np.float32)}, "float32"),
        ({"images": np.zeros((2, 4, 4, 2), np.uint8)}, "C = 1 or 3"),
        ({"images": np.zeros((0, 4, 4, 1), np.uint8)}, ">= 1"),
        ({"labels": np.array([0, 1], np.int32)}, "int32"),
        ({"labels": np.array([0, 2])}, "0 to 1"),
        ({"classes": ("a", "a")}, "distinct"),
        ({"provenance": {"x": np.zeros(2)}}, "JSON-ready"),
    ],
)
def test_invalid_fields_are_refused(change: dict[str, Any], words: str) -> None:
    fields = {
        "images": np.zeros((2, 4, 4, 1), np.uint8),
        "labels": np.array([0, 1]),
        "classes": ("a", "b"),
        "provenance": {},
    }
    with pytest.raises(ValueError, match=words):
        SyntheticDataset(**{**fields, **change})
