"""Runs in which silos fail, and runs that cannot begin."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from spoiled_answers import failed, spoil
from tiny_runs import images_of, run_tiny, tiny_settings

from fedsynth.config import RunConfig, Scalar
from fedsynth.data import load_federation
from fedsynth.errors import RunError, UserError
from fedsynth.output import RunFolder


def notes_of(folder: RunFolder) -> str:
    notes: str = json.loads(folder.results.read_text())["notes"]
    assert notes in (folder.synthetic / "README.md").read_text()
    return notes


def test_a_silo_that_never_returns_costs_its_own_classes_by_name(tmp_path: Path) -> None:
    uneven: dict[str, Scalar] = {"partition": "dirichlet", "alpha": 0.1, "samples_per_client": 100}
    settings = tiny_settings(tmp_path, strategy="dfd", dfd_rounds=6, **uneven)
    folder = run_tiny(settings, spoil("query.epsilon", failed, first=3), report=False)
    config = RunConfig.from_run_config(settings)
    federation = load_federation(config)
    held = np.stack([federation.silo(k, config).train.label_counts() > 0 for k in range(3)])
    lost = [str(label) for label in np.flatnonzero(held[1] & (held.sum(0) == 1))]
    assert lost
    per_class = Counter(path.split("/")[1] for path in images_of(folder))
    assert per_class == {name: 3 for name in "0123456789" if name not in lost}
    said = f"no images of class {', '.join(lost)}: its holders stopped answering before the end"
    assert notes_of(folder) == said


def test_min_replies_acts_on_images_that_silos_draw_from_the_federated_model(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, strategy="feddiffuse", feddiffuse_method="udec")
    with pytest.raises(RunError, match="2 usable answers, 3 needed: silo-1: no power"):
        run_tiny({**settings, "run-name": "all"}, spoil("query.sample", failed), report=False)
    settings["min-replies"] = 2
    folder = run_tiny({**settings, "run-name": "fewer"}, spoil("query.sample", failed), report=False)
    assert notes_of(folder).startswith("without the images that silo-1 should have drawn")
    assert 0 < len(images_of(folder)) < 30
    # The other holders of its classes draw for a silo that never trained.
    folder = run_tiny(settings, spoil("train", failed), report=False)
    assert len(images_of(folder)) == 30
    assert "without a model, and left out of the drawing: silo-1" in folder.log.read_text()


def test_failed_run_says_why_and_publishes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = tiny_settings(tmp_path, node_timeout=0.05)
    caplog.set_level(logging.INFO, "fedsynth")
    (tmp_path / "state").write_text("a file where the silos' folders should be")
    with pytest.raises(RunError, match=r"0 usable answers, 1 needed: silo-\d: UserError: state folder"):
        run_tiny(settings)
    folder = RunFolder(tmp_path / "runs" / "run")
    assert caplog.text.count("error: 0 usable answers") == 1
    assert "error: 0 usable answers, 1 needed: silo-" in folder.log.read_text()
    assert not folder.synthetic.exists()
    assert not folder.results.exists()
    assert not folder.metrics.exists()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"num_clients": 2000}, "num-clients = 2000"),
        ({"sampler": "ula", "weights": "posterior"}, "weights = 'posterior'"),
    ],
)
def test_what_cannot_run_leaves_no_folder(
    wrong: dict[str, Scalar], said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UserError, match=said):
        run_tiny(tiny_settings(tmp_path, **wrong))
    assert caplog.text.count("error: ") == 1
    assert list(tmp_path.iterdir()) == []


def test_more_nodes_than_silos_are_refused_by_name(tmp_path: Path) -> None:
    # Node ids are random: which partitions the first num-clients nodes have is chance.
    with pytest.raises(RunError, match=r"num-clients = 2, but there is a partition 2: set num-supernodes and num-clie"):
        run_tiny(tiny_settings(tmp_path, num_clients=2), nodes=slice(1, 3))
