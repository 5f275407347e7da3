"""The tables of what laboratories gain, from runs made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hand_made_runs import make_run, measured
from PIL import Image

from experiments import three_laboratories
from experiments.three_laboratories import EVERYWHERE, Seed, accuracy_rows, page, run_rows, varied
from fedsynth.cli.sweeps.sweep_file import PlannedRun, Sweep
from fedsynth.cli.sweeps.sweep_manifest import plan, write_manifest
from fedsynth.data import LabelledImages
from fedsynth.output import RunFolder, SyntheticDataset, write_dataset

SHADES = {"north": (40, 120), "south": (120, 40)}
"""Shades of the classes a and b: what is bright at one laboratory is dark at the other."""


def noise(shade: int, count: int) -> np.ndarray:
    return np.random.default_rng(shade).normal(shade, 4, (count, 8, 8, 1)).clip(0, 255).astype(np.uint8)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A sweep whose pooled run drew north's cells, whose local run drew each silo's, and one without north."""
    for silo, shades in SHADES.items():
        for name, shade in zip("ab", shades, strict=True):
            (tmp_path / "data" / silo / name).mkdir(parents=True)
            for number, image in enumerate(noise(shade, 20)):
                Image.fromarray(image[..., 0]).save(tmp_path / "data" / silo / name / f"{number}.png")
    rows = {"Pooled": {"strategy": "pooled"}, "Local": {"strategy": "local"}}
    rows["Pooled without north"] = {"strategy": "pooled", "num-clients": 1, "test-silo": "north"}
    given = {"dataset": "imagefolder", "data-root": str(tmp_path / "data"), "partition": "natural", "num-clients": 2}
    root, planned = tmp_path / "runs", []
    for number, (row, settings) in enumerate(rows.items()):
        snake = {key.replace("-", "_"): value for key, value in {**given, **settings}.items()}
        path = make_run(root, f"run-{number}", measured(4.5, copied_share=0.25), **snake)
        planned.append(PlannedRun(row, RunFolder(path).read_config()))
        drawn = {"silo-0": "north", "silo-1": "south"} if row == "Local" else {"": "north"}
        if row == "Local":
            for file in sorted((path / "synthetic").rglob("*"), reverse=True):
                file.rmdir() if file.is_dir() else file.unlink()
        for folder, silo in drawn.items():
            images = np.concatenate([noise(shade, 10) for shade in SHADES[silo]])
            dataset = SyntheticDataset(images, np.repeat([0, 1], 10), ("a", "b"), {})
            write_dataset(dataset, path / "synthetic" / folder)
    made = Sweep(tmp_path / "x.toml", root, tuple(planned))
    write_manifest(made, plan(made))
    return root


def test_a_classifier_knows_the_laboratories_that_its_source_knew(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(three_laboratories, "STEPS", 30)
    seed = Seed([sweep], 0)
    scores = seed.measure(tmp_path, trainings=1)
    assert set(scores) == {"", "north"}
    both = scores[""]
    for source in ("real, north alone", "synthetic, Pooled", "synthetic, Local, north alone"):
        assert both[source] == {"north": 1.0, "south": 0.0}
    for source in ("real, south alone", "synthetic, Local, south alone"):
        assert both[source] == {"north": 0.0, "south": 1.0}
    assert list(scores["north"]) == [EVERYWHERE, "real, south alone", "synthetic, Pooled without north"]
    assert scores["north"]["real, south alone"] == {"north": 0.0}
    assert scores["north"]["synthetic, Pooled without north"] == {"north": 1.0}
    assert seed.results["Local"]["copied-share"] == 0.25
    monkeypatch.setattr(three_laboratories, "recalls", None)
    assert Seed([sweep], 0).measure(tmp_path, trainings=1) == scores


def test_distances_are_to_real_cells_nobody_trained_on_and_measured_once(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed = Seed([sweep], 0)
    black = LabelledImages(np.zeros((20, 8, 8, 1), np.uint8), np.repeat([0, 1], 10), ("a", "b"))
    seed.sources[""]["black"] = black
    found = seed.distances(tmp_path, "pixels")
    assert found.keys() == seed.sources[""].keys()
    # Cells are half of a shade of 40 and half of 120: pixels of -.69 and -.06 in -1..1, 64 of them, beside -1.
    means, spread = (0.31 + 0.94) / 2, ((0.94 - 0.31) / 2) ** 2
    assert found["black"] == pytest.approx(64 * (means**2 + spread), rel=0.15)
    assert all(found["black"] > 10 * distance for source, distance in found.items() if source != "black")
    monkeypatch.setattr(three_laboratories, "create_extractor", None)
    again = Seed([sweep], 0)
    again.sources[""]["black"] = black
    assert again.distances(tmp_path, "pixels") == found


def test_tables_say_ratios_and_spread() -> None:
    first = {EVERYWHERE: {"north": 0.8}, "synthetic, DfD": {"north": 0.6}}
    rows = accuracy_rows([first, {EVERYWHERE: {"north": 0.5}}])
    assert rows[0]["north"] == "0.65 (0.50 … 0.80), 100%"
    distances = [{EVERYWHERE: 3.0, "synthetic, DfD": 4.0}, {EVERYWHERE: 5.0}]
    assert [row["distance ↓"] for row in accuracy_rows([first], distances)] == ["4 (3 … 5)", "4"]
    assert rows[1] == {"trained on": "synthetic, DfD", "seeds": "1", "north": "0.60, 75%"}
    (row,) = run_rows({"DfD": [{"copied-share": 0.25, "wall-seconds": 90.4}]})
    assert (row["near-copies ↓"], row["seconds"], row["authentic ↑"]) == ("0.25", "90", "-")


def test_batches_have_every_class_equally_often() -> None:
    labels = np.array([0] * 9 + [2])
    images, drawn = varied(LabelledImages(noise(40, 10), labels, ("a", "b", "c")), 0, 50)
    assert len(images) == 50 * 32
    assert np.bincount(drawn).tolist() == [800, 0, 800]


def test_a_page_has_a_row_a_source_and_its_classes_side_by_side() -> None:
    images = np.repeat(np.array([10, 20, 30], np.uint8), 64 * 3).reshape(3, 8, 8, 3)
    pixels = np.asarray(page([LabelledImages(images, np.array([1, 0, 1]), ("a", "b"))] * 2, per_class=2))
    assert pixels.shape == (24, 48, 3)
    assert pixels[6, [6, 18, 30, 42], 0].tolist() == [20, 255, 10, 30]
