from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fake_flower import FakeFlower, refused
from PIL import Image

from fedsynth.cli import main


def image_classes(folder: Path, **counts: int) -> Path:
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.new("L", (8, 8), 20 * number).save(folder / name / f"{number}.png")
    return folder


def empty_class(folder: Path) -> list[str]:
    return ["--dataset", "imagefolder", "--data-root", str(image_classes(folder, cat=3, dog=0))]


def corrupt_image(folder: Path) -> list[str]:
    (image_classes(folder, cat=3, dog=3) / "dog" / "torn.png").write_bytes(b"\x89PNG\r\n")
    return ["--dataset", "imagefolder", "--data-root", str(folder), "--num-clients", "1"]


def too_many_clients(folder: Path) -> list[str]:
    return ["--num-clients", "5000"]


def file_in_the_way(folder: Path) -> list[str]:
    folder.write_text("a file")
    return ["--output-dir", str(folder / "runs")]


def no_data(folder: Path) -> list[str]:
    return ["--dataset", "mnist", "--data-root", str(folder)]


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (empty_class, "no images in class folder 'dog'"),
        (corrupt_image, "torn.png"),
        (too_many_clients, "num-clients = 5000 is out of range"),
        (file_in_the_way, "a file stands where a folder is needed"),
        (no_data, "MNIST is missing"),
    ],
)
def test_bad_input_is_refused_before_flower_starts_and_leaves_nothing_behind(
    prepare: Callable[[Path], list[str]],
    said: str,
    flower: FakeFlower,
    project: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = prepare(tmp_path / "input")
    before = sorted(tmp_path.rglob("*"))
    assert said in refused(capsys, *words)
    assert flower.commands == []
    assert sorted(tmp_path.rglob("*")) == before


def test_flower_home_that_cannot_be_written_is_named(
    flower: FakeFlower, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "file").write_text("a file")
    monkeypatch.setenv("FLWR_HOME", str(project / "file"))
    assert f"FLWR_HOME = '{project / 'file'}'" in refused(capsys, "--run-name", "r")
    assert not (project / "runs" / "r").exists()


def test_existing_run_is_not_written_over(
    flower: FakeFlower, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--run-name", "r"]) == 0
    capsys.readouterr()
    assert "exists and is not empty" in refused(capsys, "--run-name", "r")
    assert len(flower.commands) == 1
