"""As tests/data/test_image_files.py, with as many mutations as find what is rare."""

from __future__ import annotations

from pathlib import Path

from image_fuzzing import fuzzed


def test_damaged_files_of_every_kind_are_read_or_refused(tmp_path: Path) -> None:
    outcome = fuzzed(20_000, seed=1, folder=tmp_path)
    assert outcome["read"] > 2_000
    assert outcome["refused"] > 2_000
