from __future__ import annotations

from pathlib import Path

import pytest
from hand_made_runs import make_run, measured

from fedsynth.cli.tables.run_groups import group_runs, read_runs
from fedsynth.errors import UserError


def labels(*paths: Path) -> list[str]:
    return [group.label for group in group_runs(read_runs(paths))]


def test_runs_that_differ_in_seed_and_place_share_a_row(tmp_path: Path) -> None:
    here = make_run(tmp_path / "x", "a", measured(1), seed=3, device="cpu", evaluate_silos=True)
    there = make_run(tmp_path / "y", "b", measured(2), seed=1, state_dir="/s", node_timeout=5.0)
    (group,) = group_runs(read_runs([here, there]))
    assert (group.label, [run.seed for run in group.runs]) == ("dfd", [1, 3])
    assert group.values("frechet-distance") == [2.0, 1.0]


def test_image_folders_at_two_places_are_two_datasets(tmp_path: Path) -> None:
    changes = {"dataset": "imagefolder", "strategy": "dfd"}
    one = make_run(tmp_path, "a", measured(1), data_root="/x", **changes)
    other = make_run(tmp_path, "b", measured(1), data_root="/y", **changes)
    assert labels(one, other) == ["dfd, data-root=/x", "dfd, data-root=/y"]


def test_labels_name_the_settings_somebody_chose(tmp_path: Path) -> None:
    filled_in = ("dfd-rounds", "prior", "num-rounds")
    default = make_run(tmp_path, "a", measured(1), filled_in, dfd_rounds=25, prior="class")
    ten = make_run(tmp_path, "b", measured(1), ("prior",), dfd_rounds=10, prior="class")
    paper = make_run(tmp_path, "c", measured(1), filled_in, dfd_rounds=1000, prior="size", dfd_preset="paper")
    fedavg = make_run(tmp_path, "d", measured(1), filled_in, strategy="fedavg", num_rounds=20)
    assert labels(default, ten, fedavg) == ["dfd, dfd-rounds=25", "dfd, dfd-rounds=10", "fedavg"]
    assert labels(default, paper) == ["dfd, dfd-preset=default", "dfd, dfd-preset=paper"]
    assert labels(default, fedavg) == ["dfd", "fedavg"]


def test_rows_of_older_defaults_still_have_different_labels(tmp_path: Path) -> None:
    new = make_run(tmp_path, "a", measured(1), ("prior",), prior="class")
    old = make_run(tmp_path, "b", measured(1), ("prior",), prior="size")
    assert labels(new, old) == ["dfd, prior=class", "dfd, prior=size"]


def test_damaged_results_are_explained(tmp_path: Path) -> None:
    run = make_run(tmp_path, "a", measured(7.0))
    (run / "results.json").write_text('{"n": ')
    with pytest.raises(UserError, match=r"results\.json' is damaged"):
        read_runs([run])
