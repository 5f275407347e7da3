"""The named settings."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

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
