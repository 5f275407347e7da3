"""Every setting that the normal tests do not interrupt: see tests/strategies/run/test_resume.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from interrupted_runs import (
    NINE,
    RUNS,
    assert_finished_run_goes_on,
    assert_killed_and_resumed_equals_whole,
    assert_killed_late_repeats_no_round,
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resume")


@pytest.mark.parametrize("name", [name for name in RUNS if name not in NINE])
def test_run_killed_in_round_3_and_resumed_equals_the_run_in_one_go(name: str, base: Path) -> None:
    assert_killed_and_resumed_equals_whole(name, base)


@pytest.mark.parametrize("name", ["fedyogi", "feddiffuse, udec", "fedddpm-plus"])
def test_finished_run_goes_on_for_more_rounds(name: str, base: Path) -> None:
    assert_finished_run_goes_on(name, base)


@pytest.mark.parametrize("name", ["local", "dfd"])
def test_run_killed_after_its_last_round_repeats_none(name: str, base: Path) -> None:
    assert_killed_late_repeats_no_round(name, base)
