from __future__ import annotations

from pathlib import Path

import pytest
from settings_fuzzing import survivors_of


@pytest.mark.parametrize("kind", ["setting", "policy"])
def test_damaged_files_are_refused_with_one_kind_of_error(kind: str, tmp_path: Path) -> None:
    assert 0 < survivors_of(kind, 2_000, tmp_path) < 2_000
