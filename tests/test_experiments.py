"""The named settings."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from experiments import cooperation, early_stopping, fedddpm, generator
from experiments.repeated_runs import mean_and_range, table_row
from fedsynth.cli.options import scalar
from fedsynth.config import RunConfig
from strategies import build_strategy

SETTINGS = sorted((Path(__file__).parents[1] / "experiments").glob("*.toml"))


def test_there_are_settings() -> None:
    assert {path.stem for path in SETTINGS} >= {"digits-quality", "mnist-small", "imagefolder-small"}


@pytest.mark.parametrize("path", SETTINGS, ids=lambda path: path.stem)
def test_setting_is_a_valid_run_config_that_changes_something(path: Path) -> None:
    given = tomllib.loads(path.read_text())
    _, config = build_strategy(RunConfig.from_run_config(given))
    flat = config.to_run_config()
    assert {key: flat[key] for key in given} == given
    assert flat != RunConfig().to_run_config()


METHODS = {
    **cooperation.METHODS,
    **cooperation.MORE,
    **cooperation.PAPER,
    "quick": cooperation.QUICK,
    **{f"fedddpm {name}": settings for name, settings in fedddpm.METHODS.items()},
    "one silo": early_stopping.ALONE,
    **{f"generator {name}": settings for name, settings in generator.METHODS.items()},
}


@pytest.mark.parametrize("name", METHODS)
def test_methods_of_an_experiment_are_valid_run_configs(name: str) -> None:
    given = {key: scalar(text) for key, text in METHODS[name].items()}
    given["classifiers"] = str(given.get("classifiers", "cnn"))
    _, config = build_strategy(RunConfig.from_run_config(given))
    flat = config.to_run_config()
    assert {key: flat[key] for key in given} == given


def test_a_row_is_the_mean_with_the_range_over_seeds() -> None:
    results = [{"rounds": 25, "coverage": 0.5, "frechet-distance": 10.04, "notes": ""}, {"rounds": 25, "coverage": 0.7}]
    results[1]["frechet-distance"] = 20.0
    columns = {"rounds": "rounds", "coverage": "C", "frechet-distance": "FD"}
    row = table_row("dfd", results, columns)
    assert row == {"method": "dfd", "rounds": "25", "C": "0.600 (0.500 … 0.700)", "FD": "15.0 (10.0 … 20.0)"}
    assert mean_and_range([3.0]) == "3"


def test_a_generators_row_stands_below_its_training_sets() -> None:
    results = {key: 0.25 for key in generator.COLUMNS} | {f"generator-{key}": 0.5 for key in generator.COLUMNS}
    further = {"generator-steps": 9, "generator-frechet-ratio": 1.5, "generator-repeated-share": 0.125}
    released, drawn = generator.rows_of("dfd", [{**results, **further}])
    assert (released["method"], drawn["method"]) == ("dfd", "dfd, generator")
    assert [row["coverage ↑"] for row in (released, drawn)] == ["0.250 (0.250 … 0.250)", "0.500 (0.500 … 0.500)"]
    assert [row["ratio of distances"] for row in (released, drawn)] == ["-", "1.500 (1.500 … 1.500)"]
    (alone,) = generator.rows_of("fedavg", [results])
    assert alone.keys() == released.keys()
