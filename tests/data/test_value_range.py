"""Files of more than 8 bits: one range for a data set."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from image_examples import in_format, png, tiff, written
from PIL import Image

from fedsynth.config import RunConfig
from fedsynth.data import configured_range, folder_silo, load_dataset, load_federation, read_image_folder
from fedsynth.data.pixels import find_value_range
from fedsynth.data.value_range import FULL_RANGE, ValueRange, whole_bits
from fedsynth.errors import UserError

RAMP = np.linspace(0, 4095, 16).reshape(4, 4).astype(np.uint16)
"""Twelve bits."""


def write_twelve_bits(folder: Path, classes: tuple[str, ...] = ("a", "b")) -> Path:
    """One image of twelve bits in the last class; those of the other classes are half as bright."""
    for name in classes:
        for number in range(5):
            written(folder, f"{name}/{number}.png", png(RAMP if name == classes[-1] else RAMP // 2))
    return folder


def expected(values: np.ndarray, high: float) -> list[int]:
    return np.rint(values.astype(float) * 255 / high).astype(int).ravel().tolist()


def test_the_range_is_found_over_all_classes_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_twelve_bits(tmp_path)
    with caplog.at_level(logging.INFO, logger="fedsynth"):
        data = read_image_folder(tmp_path)
    assert data.images[0].ravel().tolist() == expected(RAMP // 2, 4095)
    assert data.images[-1].ravel().tolist() == expected(RAMP, 4095)
    assert "10 images of more than 8 bits use 12 bits: 0 becomes black, 4095 white (value-range=0,4095" in caplog.text


def test_both_folds_have_one_range(tmp_path: Path) -> None:
    for fold, values in (("train", RAMP // 8), ("test", RAMP)):
        written(tmp_path / fold, "a/0.png", png(values))
    train, test = load_dataset("imagefolder", tmp_path)
    assert train.images.ravel().tolist() == expected(RAMP // 8, 4095)
    assert test.images.ravel().tolist() == expected(RAMP, 4095)


@pytest.mark.parametrize(("largest", "high"), [(0, 1), (1, 1), (255, 255), (256, 511), (3071, 4095), (65535, 65535)])
def test_the_largest_value_itself_is_not_told(largest: float, high: float) -> None:
    assert whole_bits(largest) == ValueRange(0, high)


def test_one_image_more_moves_the_range_by_whole_bits_only(tmp_path: Path) -> None:
    paths = [written(tmp_path, f"{top}.png", png(np.full((2, 2), top, np.uint16))) for top in (2048, 3000, 4095)]
    assert {find_value_range(paths[: count + 1]) for count in range(3)} == {ValueRange(0, 4095)}


def test_eight_bit_files_stay_and_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grey = np.arange(16, dtype=np.uint8).reshape(4, 4)
    paths = [written(tmp_path, f"a/{name}", png(grey)) for name in ("0.png", "1.png")]
    with monkeypatch.context() as patched:
        patched.setattr("fedsynth.data.pixels.read_picture", lambda *_: pytest.fail("decoded"))
        assert find_value_range(paths) == FULL_RANGE
    written(tmp_path, "b/0.png", png(RAMP))
    images = read_image_folder(tmp_path).images
    assert images[0].ravel().tolist() == images[1].ravel().tolist() == list(range(16))
    assert images[2].ravel().tolist() == expected(RAMP, 4095)


def test_what_auto_cannot_show_is_refused_and_a_chosen_range_shows_it(tmp_path: Path) -> None:
    hounsfield = np.array([[-1000, 0], [500, 3000]], np.int16)
    written(tmp_path, "a/scan.tif", tiff(hounsfield))
    written(tmp_path, "b/0.png", png(RAMP))
    with pytest.raises(UserError, match=r"1 of 2 images .*scan\.tif \(negative pixel values: set value-range=low,high"):
        read_image_folder(tmp_path)
    data = read_image_folder(tmp_path, image_size=2, value_range=ValueRange(-1000, 1000, chosen=True))
    assert data.images[0].ravel().tolist() == [0, 128, 191, 255]


def test_two_silos_with_one_chosen_range_agree(tmp_path: Path) -> None:
    folders = [tmp_path / "dim", tmp_path / "bright"]
    for folder, brighter in zip(folders, (1, 16), strict=True):
        written(folder, "a/0.png", png(RAMP))
        written(folder, "a/1.png", png(RAMP * brighter))
    found, chosen = (
        [folder_silo(folder, folder.name, 0.0, 0, value_range=given).train.images[0] for folder in folders]
        for given in (None, ValueRange(0, 4095, chosen=True))
    )
    assert found[0].ravel().tolist() == expected(RAMP, 4095)
    assert found[1].ravel().tolist() == expected(RAMP, 65535)
    assert (chosen[0] == chosen[1]).all()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("auto", None),
        ("full", FULL_RANGE),
        ("0,4095", ValueRange(0, 4095, chosen=True)),
        ("-1000, 1e3", ValueRange(-1000, 1000, chosen=True)),
    ],
)
def test_the_key_says_the_range(text: str, wanted: ValueRange | None) -> None:
    config = RunConfig.from_run_config({"dataset": "silos", "value-range": text})
    assert configured_range(config.data) == wanted


@pytest.mark.parametrize("text", ["", "12", "4095,0", "1,1", "0,inf", "nan,1", "0,1,2", "fulll"])
def test_no_other_word_is_a_range(text: str) -> None:
    with pytest.raises(UserError, match=rf"value-range = '{text}': must be 'auto', 'full' or two numbers, the smaller"):
        RunConfig.from_run_config({"dataset": "silos", "value-range": text})


@pytest.mark.parametrize(("text", "high"), [("auto", 4095), ("full", 65535), ("0,8190", 8190)])
def test_a_simulation_uses_the_key(text: str, high: int, tmp_path: Path) -> None:
    written(tmp_path, "train/a/0.png", png(RAMP))
    written(tmp_path, "test/a/0.png", png(RAMP))
    keys = {"dataset": "imagefolder", "data-root": str(tmp_path), "num-clients": 1, "partition": "iid"}
    federation = load_federation(RunConfig.from_run_config({**keys, "value-range": text}))
    assert federation.train.images.ravel().tolist() == federation.test.images.ravel().tolist() == expected(RAMP, high)


def test_several_pages_are_refused_or_the_first_is_taken(tmp_path: Path) -> None:
    first, second = (Image.new("L", (4, 4), value) for value in (10, 20))
    written(tmp_path, "train/a/0.tif", in_format(first, "TIFF", save_all=True, append_images=[second]))
    written(tmp_path, "test/a/0.png", in_format(second, "PNG"))
    keys = {"dataset": "imagefolder", "data-root": str(tmp_path), "num-clients": 1, "partition": "iid"}
    with pytest.raises(UserError, match=r"0\.tif \(2 pages: .* first-page-only=true"):
        load_federation(RunConfig.from_run_config(keys))
    federation = load_federation(RunConfig.from_run_config({**keys, "first-page-only": True}))
    assert np.unique(federation.train.images).tolist() == [10]
