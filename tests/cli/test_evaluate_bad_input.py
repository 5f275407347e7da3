"""What a hostile or clumsy user gives to ``fedsynth evaluate``: one line that says what to change, before any work."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from class_folders import write_images

from fedsynth.cli import main

QUICK = ["--feature-extractor", "pixels", "--classifiers", "logistic-regression", "--classifier-seeds", "1"]


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with ``real`` and ``synthetic``; no weights are at hand."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch-home"))
    write_images(tmp_path / "real", {"a": 20, "b": 20})
    write_images(tmp_path / "synthetic", {"a": 10, "b": 10})
    return tmp_path


Refused = Callable[..., str]


@pytest.fixture
def said_of(refused: Refused) -> Refused:
    """What the command says of two folders or of other words; nothing is measured or written."""

    def run(*words: str, dataset: str = "synthetic", real: str = "real") -> str:
        return refused("evaluate", dataset, "--real", real, *words)

    return run


def measured(*words: str, dataset: str = "synthetic", real: str = "real") -> dict[str, object]:
    """Run the command, which must succeed, and return its strictly valid numbers."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    assert main(["evaluate", dataset, "--real", real, "--output", "numbers.json", *QUICK, *words]) == 0
    numbers: dict[str, object] = json.loads(Path("numbers.json").read_text(), parse_constant=refuse)
    return numbers


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--image-size 0", "image-size = 0: must be 'auto' or a whole number >= 1"),
        ("--image-size 4", "resize them to 8 x 8 pixels or more (image-size)"),
        ("--image-size 100000000", "image-size = 100000000: images of 100000000 x"),
        ("--classifiers cnn,,svm", "classifiers = 'cnn,,svm': '' is none of logistic-regression"),
        ("--classifiers cnn,cnn", "classifiers = 'cnn,cnn': name each once"),
        ("--device tpu", "unknown device 'tpu'"),
        ("--sed 1", "unknown option '--sed'"),
        ("--output=", "--output '.' is a folder: give the name of a file, such as numbers.json"),
        ("--report real", "--report 'real' is a folder: give the name of a file, such as real/report.html"),
        ("--output real/a/0.png/x.json", "--output: cannot write 'real/a/0.png/x.json': a file stands where"),
        ("--output page --report ./page", "--output and --report are the same file 'page'"),
        ("--report synthetic/page.html", "--report 'synthetic/page.html' lies among the images in 'synthetic'"),
        ("--report real/a/page.html", "--report 'real/a/page.html' lies among the images in 'real'"),
    ],
)
def test_options_are_checked_before_any_work(words: str, said: str, said_of: Refused) -> None:
    assert said in said_of(*words.split())


def test_folders_that_do_not_fit_are_named(folders: Path, said_of: Refused) -> None:
    assert "--real: there is no folder 'real/a/0.png' (it is a file)" in said_of(real="real/a/0.png")
    assert "dataset: there is no folder 'real/a/0.png' (it is a file)" in said_of(dataset="real/a/0.png")
    assert "--real: there is no folder 'nowhere'; give one with" in said_of(real="nowhere")
    write_images(folders / "other", {"a": 3, "c": 3})
    assert "class folder 'c' in 'other' is not a class of this dataset (classes: a, b)" in said_of(dataset="other")
    (folders / "empty").mkdir()
    write_images(folders / "half", {"a": 20, "b": 0})
    for side in ("real", "dataset"):
        assert "no class folders in 'empty'" in said_of(**{side: "empty"})
        assert "no images in class folder 'b' of 'half'" in said_of(**{side: "half"})
    write_images(folders / "one", {"a": 1})
    assert "dataset 'one': 1 image, at least 2 are needed" in said_of(dataset="one")
    assert "--real 'one' gives 1 training and 0 test images, at least 2 of each" in said_of(dataset="one", real="one")


def test_run_folders_must_hold_one_dataset(folders: Path, said_of: Refused) -> None:
    (folders / "run" / "models").mkdir(parents=True)
    (folders / "run" / "config.json").write_text("{}")
    assert "the run folder 'run' has no synthetic/: its run did not finish" in said_of(dataset="run")
    for silo in ("silo-0", "silo-1"):
        write_images(folders / "run" / "synthetic" / silo, {"a": 3})
        (folders / "run" / "synthetic" / silo / "provenance.json").write_text("{}")
    said = "'run/synthetic' holds 2 datasets: measure one at a time, such as run/synthetic/silo-0"
    assert said in said_of(dataset="run")


@pytest.mark.parametrize(("side", "synthetic_count"), [("real", 20), ("synthetic", 19)])
def test_unreadable_images_are_named_with_a_key_that_leaves_them_out(
    side: str, synthetic_count: int, folders: Path, said_of: Refused
) -> None:
    (folders / side / "a" / "3.png").write_bytes(b"no image")
    said = said_of()
    assert f"{side}/a/3.png (not an image)" in said
    assert "set skip-bad-images=true" in said
    assert measured("--skip-bad-images", "true")["synthetic-count"] == synthetic_count


@pytest.mark.parametrize(
    ("words", "key", "content"),
    [
        ("--feature-extractor inception-v3-compat --feature-extractor-weights-path", "inception-v3-compat", None),
        ("--feature-extractor dinov2-vit-s-14 --feature-extractor-weights-path", "dinov2-vit-s-14", [1]),
        ("--feature-extractor-weights-path", "inception-v3-compat", b"<html>please log in</html>"),
        ("--classifiers resnet --resnet-weights-path", "resnet-weights-path = weights.pth", {"a": torch.zeros(2)}),
    ],
)
def test_unusable_weights_are_refused_before_any_training(
    words: str, key: str, content: object, said_of: Refused, caplog: pytest.LogCaptureFixture
) -> None:
    if isinstance(content, bytes):
        Path("weights.pth").write_bytes(content)
    elif content is not None:
        torch.save(content, "weights.pth")
    with caplog.at_level(logging.INFO, "fedsynth"):
        said = said_of(*words.split(), "weights.pth")
    assert key in said
    assert "weights.pth" in said
    assert "weights-path" in said
    assert [line for line in caplog.messages if ": images: " not in line] == [], "folders were listed, no more"


@pytest.mark.parametrize(
    ("synthetic", "real", "said"),
    [
        (
            {"side": 16, "colour": True},
            {},
            "the real ones: 4 of 4 images from 16 x 16 to 8 x 8 pixels, 4 of 4 from colour to grey",
        ),
        ({}, {"colour": True}, "the format of the real ones: 4 of 4 from grey to colour"),
        (
            {"side": 32},
            {"side": 65},
            "real images were converted: 40 of 40 images from 65 x 65 to 32 x 32 pixels; image-size sets",
        ),
    ],
)
def test_images_that_had_to_be_converted_are_told_before_and_after(
    synthetic: dict[str, int], real: dict[str, int], said: str, folders: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_images(folders / "s", {"a": 2, "b": 2}, **synthetic)
    write_images(folders / "r", {"a": 20, "b": 20}, **real)
    with caplog.at_level(logging.INFO, "fedsynth"):
        notes = str(measured(dataset="s", real="r")["notes"])
    assert said in next(line for line in caplog.messages if ": images: " not in line)
    assert said in notes
    assert notes.count("converted") == 1


def test_unequal_sizes_within_a_folder_are_told(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "converted" not in str(measured()["notes"])
    write_images(folders / "large", {"a": 2}, side=16)
    for image in (folders / "large" / "a").iterdir():
        image.replace(folders / "synthetic" / "a" / f"large-{image.name}")
    write_images(folders / "larger", {"a": 1}, side=24)
    (folders / "larger" / "a" / "0.png").replace(folders / "synthetic" / "b" / "larger.png")
    assert "3 of 23 images from 16 x 16 and other sizes to 8 x 8 pixels" in str(measured()["notes"])
    assert "note: synthetic images were converted" in capsys.readouterr().out


def test_folds_are_told_apart(folders: Path) -> None:
    write_images(folders / "folds" / "train", {"a": 10, "b": 10})
    write_images(folders / "folds" / "test", {"a": 5, "b": 5}, side=10)
    assert "real test images were converted: 10 of 10 images from 10 x 10 to" in str(measured(real="folds")["notes"])


def test_few_images_or_one_class_still_give_finite_numbers(folders: Path) -> None:
    write_images(folders / "few", {"a": 1, "b": 1})
    assert measured(dataset="few")["n-train"] == 2
    write_images(folders / "only", {"a": 20})
    assert measured(dataset="only")["n-train"] == 20
    assert measured(dataset="only", real="only")["accuracy-logistic-regression"] == 1.0


def test_a_disk_that_fills_up_in_the_end_leaves_the_printed_numbers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedsynth.cli.evaluating.write_json", full)
    assert main(["evaluate", "synthetic", "--real", "real", "--output", "numbers.json", *QUICK]) == 2
    printed = capsys.readouterr()
    assert "coverage" in printed.out
    assert "error: cannot write 'numbers.json': no space left on that disk" in printed.err
