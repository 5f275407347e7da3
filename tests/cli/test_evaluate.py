from __future__ import annotations

import json
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from class_folders import write_images
from tiny_autoencoders import kl_of

from fedsynth.cli import main
from fedsynth.config import RunConfig
from fedsynth.data import load_federation
from fedsynth.diffusion import codec_of
from fedsynth.evaluation import Evaluation, train_domain_classifier
from fedsynth.evaluation.utility import Scores
from fedsynth.output import SyntheticDataset, write_dataset
from fedsynth.spec import ImageSpec


class Measured:
    """What would have been measured, in place of measuring it."""

    def __init__(self) -> None:
        self.folds: tuple[Any, ...] = ()
        self.forms: Any = None
        self.sets: list[tuple[Any, Any]] = []

    def evaluator(self, *folds: Any, **named: Any) -> Measured:
        self.folds, self.forms = folds, named["forms"]
        return self

    def evaluate(self, images: Any, labels: Any, illustrated: bool = False) -> Evaluation:
        self.sets.append((images, labels))
        row = {"n": 4, "k": 3, "frechet-distance": 7.5, "coverage": 0.7}
        fidelity = {"overall": row, "per-class": {}, "left-out": {}}
        scores = {"cnn": Scores(0.5, 0.5, 0.5, 0.5, None, (), ())}
        return Evaluation("domain-classifier", fidelity, fidelity, 4, scores, scores, scores, (), ("few images",))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    recorder = Measured()
    monkeypatch.setattr("fedsynth.api.measuring.Evaluator", recorder.evaluator)
    return recorder


def test_any_two_folders_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Dark and light are told apart after a few steps.
    monkeypatch.setattr(import_module("fedsynth.evaluation.utility"), "CNN_STEPS", 60)
    quickly = partial(train_domain_classifier, steps=60)
    monkeypatch.setattr(import_module("fedsynth.evaluation.cache"), "train_domain_classifier", quickly)
    real = tmp_path / "real"
    write_images(real / "train", {"dark": 20, "light": 20})
    write_images(real / "test", {"dark": 10, "light": 10})
    output, report = tmp_path / "numbers.json", tmp_path / "page" / "report.html"
    monkeypatch.chdir(tmp_path)
    words = f"--output {output} --report {report} --classifiers logistic-regression,cnn --classifier-seeds 1".split()
    assert main(["evaluate", str(real / "train"), "--real", str(real), *words]) == 0
    numbers = json.loads(output.read_text())
    assert numbers["copied-share"] == 1.0
    assert numbers["accuracy-cnn"] == numbers["real-accuracy-cnn"] == 1.0
    assert (numbers["n"], numbers["n-train"]) == (20, 40)
    printed = capsys.readouterr().out
    assert "copied-share" in printed
    assert "note: n = 20 is below 2048" in printed
    assert "accuracy-mlp" not in printed
    assert "copied-share" in report.read_text()
    figures = {path.name for path in (report.parent / "figures").iterdir()}
    assert figures >= {"images.png", "nearest.png", "embedding.png"}
    # Kept for the next dataset that is measured against the same images.
    assert len([*(tmp_path / ".fedsynth" / "evaluation" / "classifiers").iterdir()]) == 1


def test_synthetic_images_take_the_format_of_the_real_ones(tmp_path: Path, measured: Measured) -> None:
    real = write_images(tmp_path / "real", {"a": 10, "b": 10, "c": 10}, side=16)
    synthetic = write_images(tmp_path / "synthetic", {"a": 3, "c": 2})
    assert main(["evaluate", str(synthetic), "--real", str(real), "--seed", "3"]) == 0
    ((images, labels),) = measured.sets
    train, test, classes, seed, _ = measured.folds
    assert images.shape == (5, 16, 16, 1)
    assert labels.tolist() == [0, 0, 0, 2, 2]
    assert (len(train), len(test), classes, seed) == (24, 6, ("a", "b", "c"), 3)
    assert np.bincount(train.labels).tolist() == [8, 8, 8]


def test_copies_behind_an_autoencoder_are_looked_for_with_it(
    tmp_path: Path, measured: Measured, capsys: pytest.CaptureFixture[str]
) -> None:
    real = write_images(tmp_path / "real", {"a": 10, "b": 10})
    kl_of().save_pretrained(tmp_path / "autoencoder")
    config = RunConfig.from_run_config({"autoencoder": str(tmp_path / "autoencoder")})
    codec = codec_of(config, ImageSpec(1, 8, ("a", "b")))
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1), np.uint8)
    made = SyntheticDataset(images, np.arange(6) % 2, ("a", "b"), {"codec": codec.digest})
    write_dataset(made, tmp_path / "synthetic")
    words = ["evaluate", str(tmp_path / "synthetic"), "--real", str(real)]
    assert main(words) == 0
    assert (measured.forms.variants, measured.forms.reconstruct) == ((), None)
    assert "note: an autoencoder made these images: without it" in capsys.readouterr().out
    assert main([*words, "--autoencoder", str(tmp_path / "autoencoder"), "--augment", "flip"]) == 0
    (mirrored,) = measured.forms.variants
    assert (mirrored(images) == images[:, :, ::-1]).all()
    assert (measured.forms.reconstruct(images) == codec.decode(codec.encode(images))).all()
    assert "an autoencoder made these images" not in capsys.readouterr().out


def test_run_folder_with_other_folder_names_is_understood(tmp_path: Path, measured: Measured) -> None:
    names = {str(number): 5 for number in range(11)}
    real = write_images(tmp_path / "real", names)
    labels = np.arange(11, dtype=np.int64)
    images = np.full((11, 8, 8, 1), 7, np.uint8) + labels[:, None, None, None].astype(np.uint8)
    run = tmp_path / "run"
    classes = tuple(sorted(names))
    write_dataset(SyntheticDataset(images, labels, classes, {}), run / "synthetic")
    assert main(["evaluate", str(run), "--real", str(real)]) == 0
    # Class "10" sorts between "1" and "2" among real folders, whose order counts.
    assert {int(label): int(image[0, 0, 0]) for image, label in zip(*measured.sets[0], strict=True)} == {
        int(label): 7 + int(label) for label in labels
    }


def test_real_images_may_lie_in_silos_folders(tmp_path: Path, measured: Measured) -> None:
    for silo in ("north", "fold1"):
        write_images(tmp_path / "real" / silo, {"dark": 20, "light": 10})
    write_images(tmp_path / "synthetic", {"dark": 9, "light": 9}, side=9)
    config = RunConfig.from_run_config(
        {"dataset": "imagefolder", "data-root": str(tmp_path / "real"), "partition": "natural", "num-clients": 2}
    )
    assert main(["evaluate", str(tmp_path / "synthetic"), "--real", str(tmp_path / "real")]) == 0
    train, test = measured.folds[:2]
    federation = load_federation(config)
    assert (train.labels.tolist(), test.labels.tolist()) == (
        federation.train.labels.tolist(),
        federation.test.labels.tolist(),
    )
    assert (train.images == federation.train.images).all()
    assert measured.folds[2] == ("dark", "light")
