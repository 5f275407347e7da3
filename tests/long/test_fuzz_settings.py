"""As tests/config/test_settings_fuzzing.py, with as many mutations as find what is rare."""

from __future__ import annotations

from pathlib import Path

import pytest
from settings_fuzzing import survivors_of

MUTATIONS = 20_000


@pytest.mark.parametrize("kind", ["setting", "policy"])
def test_damaged_files_are_refused_with_one_kind_of_error(kind: str, tmp_path: Path) -> None:
    assert 0 < survivors_of(kind, MUTATIONS, tmp_path, seed=1) < MUTATIONS
