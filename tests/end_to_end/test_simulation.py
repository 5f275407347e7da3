"""Whole runs through the real engine: ``flwr run``, SuperLink, Ray, silos, dataset on disk."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from datasets import load_dataset as load_hub_dataset
from shown_to_others import files_that_name_this_machine
from tiny_runs import run_tiny
from torchvision.datasets import ImageFolder

from fedsynth.output import RunFolder

FlowerRun = Callable[..., Path]


def images_of(run_folder: Path) -> dict[str, bytes]:
    """Every synthetic image of a run, by relative path."""
    return {str(p.relative_to(run_folder)): p.read_bytes() for p in sorted(run_folder.glob("synthetic/**/*.png"))}


@pytest.fixture(scope="session")
def dfd_run(flower_run: FlowerRun, app: Path) -> Path:
    return flower_run(app, "dfd")


def test_only_the_bundle_provides_the_code(bundle_environment: dict[str, str], tmp_path: Path) -> None:
    code = "import flwr, importlib.util as u; print([u.find_spec(n) for n in ('fedsynth', 'strategies', 'clients')])"
    done = subprocess.run(
        [sys.executable, "-c", code], env=bundle_environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[None, None, None]"


def test_dfd_runs_from_the_bundle_to_a_dataset(dfd_run: Path) -> None:
    folder = RunFolder(dfd_run)
    assert [row["round"] for row in folder.read_metrics()] == [1, 2, 3, 4]
    results = json.loads(folder.results.read_text())
    assert results["rounds"] == 4
    assert 0.0 <= results["accuracy-cnn"] <= 1.0
    assert results["bytes-up"] > 40 * 64 * 4 * 4
    config = json.loads(folder.config.read_text())
    assert config["config"]["weights"] == "posterior"
    assert "weights" in config["resolved"]
    clients = json.loads(folder.partition.read_text())["clients"]
    assert [len(client["indices"]) for client in clients] == [60, 60, 60]
    assert "data:image/png" in folder.report.read_text()
    # Which is there for --resume, and says so.
    assert files_that_name_this_machine(dfd_run) == {"machine.json"}


def test_dataset_reopens_with_torchvision_and_datasets(dfd_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = ImageFolder(str(dfd_run / "synthetic"))
    assert len(folder) == 40
    assert np.bincount(folder.targets).tolist() == [4] * 10
    hub = load_hub_dataset(
        "imagefolder", data_dir=str(dfd_run / "synthetic"), split="train", cache_dir=str(dfd_run / "c")
    )
    by_folder = sorted(Path(path).parent.name for path, _ in folder.samples)
    assert sorted(hub["label"]) == by_folder


def test_answers_in_another_order_and_models_trained_anew_in_one_process_give_the_same_images(
    dfd_run: Path, tmp_path: Path
) -> None:
    flat = RunFolder(dfd_run).read_config().to_run_config()
    elsewhere = {"output-dir": str(tmp_path / "runs"), "state-dir": str(tmp_path / "state"), "evaluate": False}
    again = run_tiny({**flat, **elsewhere}, lambda replies: replies[::-1], report=False)
    assert images_of(again.path) == images_of(dfd_run)
    assert len(images_of(again.path)) == 40
