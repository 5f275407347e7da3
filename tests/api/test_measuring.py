from __future__ import annotations

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from class_folders import write_images
from PIL import Image

import fedsynth
from fedsynth.api.images_in_memory import labelled_images
from fedsynth.cli import main
from fedsynth.data import read_image_folder
from fedsynth.errors import UserError

QUICK = {"classifiers": "logistic-regression", "classifier_seeds": 1, "feature_extractor": "pixels"}
RNG = np.random.default_rng(0)
IMAGES, LABELS = RNG.integers(0, 256, (12, 8, 8), np.uint8), np.arange(12) % 2


def test_folders_memory_and_command_give_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    real, made = tmp_path / "real", tmp_path / "made"
    write_images(real / "train", {"dark": 10, "light": 10})
    write_images(real / "test", {"dark": 6, "light": 6})
    write_images(made, {"dark": 5, "light": 4})
    words = [f"--{name.replace('_', '-')}={value}" for name, value in QUICK.items()]
    assert main(["evaluate", str(made), "--real", str(real), "--output", "numbers.json", *words]) == 0
    printed = json.loads((tmp_path / "numbers.json").read_text())
    of_folders = fedsynth.evaluate(made, str(real), **QUICK).row()
    assert json.loads(json.dumps(of_folders)) == printed
    sets = [read_image_folder(path) for path in (made, real / "train", real / "test")]
    mine, *folds = ((held.images, held.labels) for held in sets)
    in_memory = fedsynth.evaluate(mine, tuple(folds), **QUICK).row()
    of_classes = {name: in_memory.pop(name) for name in ("per-class", "real-per-class")}
    assert {*of_classes["per-class"]["accuracy-logistic-regression"]} == {"0", "1"}
    assert in_memory.pop("notes").replace("class 0, 1", "class dark, light") == of_folders["notes"]
    assert {name: value for name, value in of_folders.items() if name in in_memory} == in_memory


def test_a_run_is_measured_and_keys_of_other_commands_are_refused(run: fedsynth.Run, tmp_path: Path) -> None:
    real = fedsynth.Run(run.path).dataset
    measured = fedsynth.evaluate(run, real, state_dir=tmp_path, **QUICK)
    row = measured.row()
    assert len(repr(measured)) < 200
    assert f"n {row['n']}, " in repr(measured)
    # One in five of each class is for testing, the others are the very images.
    assert (row["n"], row["n-train"], row["copied-share"]) == (6, 24, pytest.approx(0.8, abs=0.21))
    with pytest.raises(UserError, match="unknown key 'train-steps'"):
        fedsynth.evaluate(run, real, train_steps=3)
    with pytest.raises(UserError, match="real: give a folder, one set in memory, or two"):
        fedsynth.evaluate(run, (tmp_path, tmp_path))


@pytest.mark.parametrize("kind", ["arrays", "pairs", "rows", "hugging face"])
def test_whatever_holds_them_the_images_are_the_same(kind: str) -> None:
    pictures = [Image.fromarray(image) for image in IMAGES]
    given = {
        "arrays": lambda: (IMAGES, LABELS),
        "pairs": lambda: [*zip(pictures, LABELS.tolist(), strict=True)],
        "rows": lambda: [{"image": image, "label": int(label)} for image, label in zip(IMAGES, LABELS, strict=True)],
        "hugging face": lambda: datasets.Dataset.from_dict({"image": pictures, "label": LABELS.tolist()}).cast(
            datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
        ),
    }[kind]()
    found = labelled_images("set", given, None if kind == "hugging face" else ("cat", "dog"))
    assert np.array_equal(found.images[..., 0], IMAGES)
    assert found.labels.tolist() == LABELS.tolist()
    assert found.classes == ("cat", "dog")
    # By name, not by position.
    other = labelled_images("set", found, ("bird", "dog", "cat"))
    assert other.labels.tolist() == [2, 1] * 6


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((IMAGES, LABELS[:3]), r"set: 12 images with labels int64 \(3,\)"),
        ((IMAGES, LABELS / 2), "labels float64"),
        ((IMAGES / 255, LABELS), "set: images must be uint8"),
        ((IMAGES, LABELS + 1), "set: label 2 is out of range: 0 to 1 stand for cat, dog"),
        ((np.zeros((12, 3, 8, 8), np.uint8), LABELS), r"images of \(12, 3, 8, 8\): channels come last, \(N, H, W, C\)"),
        (IMAGES, r"set: an object of ndarray \(12, 8, 8\) has no labels: give \(images, labels\)"),
        ([*IMAGES], r"set: it must yield pairs of an image and its integer label, and yields .* ndarray \(8, 8\)"),
        ([Image.fromarray(IMAGES[0])], "and yields an object of Image; or give"),
        (3, "set: an object of int has no labels"),
        ([(IMAGES[0], 0), (IMAGES[1, :4], 1)], r"images of 2 shapes, \(4, 8\) to \(8, 8\)"),
        ([], "set: 0 images"),
    ],
)
def test_what_is_no_set_is_named(given: object, said: str) -> None:
    with pytest.raises(UserError, match=said):
        labelled_images("set", given, ("cat", "dog"))  # type: ignore[arg-type]


def test_classes_that_real_images_lack_are_named() -> None:
    named = labelled_images("set", (IMAGES, LABELS), ("cat", "dog"))
    with pytest.raises(UserError, match=r"class 'dog' is not one of the real images' \(cat, cow\): name both alike"):
        labelled_images("set", named, ("cat", "cow"))
