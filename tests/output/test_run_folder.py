from __future__ import annotations

import json
import logging
from datetime import datetime
from pathlib import Path

import pytest

from fedsynth.errors import UserError
from fedsynth.output import RunFolder, default_name


def test_names_hold_time_strategy_dataset_and_seed() -> None:
    assert default_name("dfd", "digits", 7, datetime(2026, 3, 4, 5, 6, 7)) == "20260304-050607-dfd-digits-7"


def test_create_makes_an_empty_writable_folder(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "runs", "first")
    assert run.path == tmp_path / "runs" / "first"
    assert list(run.path.iterdir()) == []
    assert run.report == run.path / "report.html"


def test_an_empty_folder_may_be_taken_but_no_full_one(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    run = RunFolder.create(tmp_path, "first")
    run.write_config({"seed": 1})
    with pytest.raises(UserError, match="exists and is not empty"):
        RunFolder.create(tmp_path, "first")
    assert json.loads(run.config.read_text()) == {"seed": 1}


def test_a_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("x")
    with pytest.raises(UserError, match=r"runs/first.*a file stands where a folder is needed"):
        RunFolder.create(tmp_path / "runs", "first")


def test_a_run_name_taken_by_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "first").write_text("x")
    with pytest.raises(UserError, match="a file stands where a folder is needed"):
        RunFolder.create(tmp_path, "first")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that refuses new folders to root too")
def test_an_unwritable_root_is_refused() -> None:
    with pytest.raises(UserError, match=r"cannot write '/proc/runs/first'"):
        RunFolder.create(Path("/proc/runs"), "first")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc"])
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="plain folder name"):
        RunFolder.create(tmp_path, name)


def test_json_files_go_where_they_belong(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "a")
    run.write_partition([[0, 1], [2]])
    run.write_results({"accuracy": 0.5})
    assert json.loads((tmp_path / "a" / "partition.json").read_text()) == [[0, 1], [2]]
    assert json.loads((tmp_path / "a" / "results.json").read_text()) == {"accuracy": 0.5}


def test_metrics_grow_by_one_line_a_round(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "a")
    assert run.read_metrics() == []
    for number in (1, 2, 3):
        run.append_metrics({"round": number, "note": "line\nbreak"})
        assert len(run.metrics.read_text().splitlines()) == number
    assert [row["round"] for row in RunFolder(run.path).read_metrics()] == [1, 2, 3]


@pytest.mark.parametrize("torn", ['{"round": 3, "lo', "{", '{"round": 3}'])
def test_a_torn_last_line_is_forgotten_and_overwritten(tmp_path: Path, torn: str) -> None:
    run = RunFolder.create(tmp_path, "a")
    run.append_metrics({"round": 1})
    run.append_metrics({"round": 2})
    with run.metrics.open("a") as file:
        file.write(torn)
    assert [row["round"] for row in run.read_metrics()] == [1, 2]
    run.append_metrics({"round": 3, "loss": 0.5})
    assert run.read_metrics() == [{"round": 1}, {"round": 2}, {"round": 3, "loss": 0.5}]


def test_a_row_that_is_no_json_leaves_the_file_alone(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "a")
    run.append_metrics({"round": 1})
    with pytest.raises(TypeError):
        run.append_metrics({"round": {1, 2}})
    assert run.read_metrics() == [{"round": 1}]


def test_the_log_is_copied_while_the_block_runs(tmp_path: Path) -> None:
    run, logger = RunFolder.create(tmp_path, "a"), logging.getLogger("fedsynth.test_run_folder")
    logger.setLevel(logging.INFO)

    def work(message: str) -> None:
        with run.log_to_file(logger):
            logger.info("%s é", message)
            raise ZeroDivisionError

    for message in ("first", "resumed"):
        with pytest.raises(ZeroDivisionError):
            work(message)
        logger.info("outside")
    lines = run.log.read_text(encoding="utf-8").splitlines()
    assert [line.split(" INFO ")[1] for line in lines] == ["first é", "resumed é"]
    assert logger.handlers == []
