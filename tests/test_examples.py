"""The scripts and notebooks of examples/, run in this process with tiny settings."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from class_folders import write_images
from tiny_runs import TINY, without_pictures

import fedsynth

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py"))
NOTEBOOKS = sorted(path.stem for path in EXAMPLES.glob("*.ipynb"))
SHARES = ("partition", "samples-per-client", "num-clients")
"""Keys of simulated silos; the examples say themselves how images are shared out."""


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The scripts, as modules."""
    monkeypatch.syspath_prepend(EXAMPLES)
    with without_pictures():
        yield
    for name in SCRIPTS:
        sys.modules.pop(name, None)


def tiny(folder: Path, strategy: str = "dfd", **changes: Any) -> dict[str, Any]:
    """Settings that make an example short, in snake case."""
    averaging = ("num-rounds",)
    cooperation = ("dfd-rounds", "screening")
    left = SHARES + (averaging if strategy == "dfd" else cooperation)
    settings = {key.replace("-", "_"): value for key, value in TINY.items() if key not in left}
    shorter: dict[str, Any] = {"train_steps": 2} | ({"dfd_rounds": 2} if strategy == "dfd" else {})
    return {**settings, **shorter, "output_dir": folder / "runs", "state_dir": folder / "state", **changes}


def test_one_s_own_images_and_one_s_own_strategy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import own_images  # type: ignore[import-not-found]
    import own_strategy  # type: ignore[import-not-found]

    folder = write_images(tmp_path / "photos", {"dark": 25, "light": 25})
    run = own_images.main(folder, **tiny(tmp_path, image_size=8, alpha=100.0, progress=False))
    assert (run.dataset.classes, run.dataset.images.shape) == (("dark", "light"), (30, 8, 8, 1))
    said = capsys.readouterr().out
    assert "30 images of (8, 8, 1), per class {'dark': 15, 'light': 15}" in said
    changes = tiny(tmp_path, "fedavg", run_name="mine", num_clients=2, partition="iid", samples_per_client=40)
    run = own_strategy.main(**changes, alpha=0.1, progress=False)
    assert run.config.run.strategy == "own_strategy:EqualVotes"
    assert "round  2  loss " in capsys.readouterr().out


def test_a_model_from_elsewhere_takes_part(tmp_path: Path) -> None:
    import foreign_models  # type: ignore[import-not-found]

    run = foreign_models.main(tmp_path, foreign_steps=3, progress=False, **tiny(tmp_path, early_stop=False))
    assert run.dataset.classes == tuple("0123456789")
    trained = {path.relative_to(tmp_path / "state" / "silos").parts[0] for path in (tmp_path / "state").rglob("unet")}
    assert trained == {"north", "south"}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_run_from_top_to_bottom(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    changes = tiny(tmp_path, early_stop=False, progress=False)
    if name == "first_dataset":
        changes |= {"num_clients": 3, "partition": "iid", "samples_per_client": 60}
    scope: dict[str, Any] = {}
    for cell in json.loads((EXAMPLES / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{name}.ipynb {cell['id']}", "exec"), scope)
            if "parameters" in cell["metadata"].get("tags", ()):
                scope["settings"] |= changes
                scope["settings"].pop("alpha", None)
                scope.setdefault("measures", {}).update(feature_extractor="pixels", classifier_seeds=1)
    assert isinstance(scope["run"], fedsynth.Run)
    assert len(scope["run"].dataset.images) == 30


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_are_kept_without_outputs(name: str) -> None:
    cells = json.loads((EXAMPLES / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [(cell["outputs"], cell["execution_count"]) for cell in code] == [([], None)] * len(code)
    assert sum("parameters" in cell["metadata"].get("tags", ()) for cell in code) == 1


def test_every_example_is_short_and_tested() -> None:
    assert SCRIPTS == ["foreign_models", "own_images", "own_strategy"]
    assert NOTEBOOKS == ["first_dataset", "three_hospitals"]
    assert all(len((EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()) < 110 for name in SCRIPTS)
