"""Folders of images as people have them, if they lie beside the repository."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FIELD = Path(__file__).parents[3] / "shared" / "field" / "make_inputs.py"


@pytest.fixture(scope="session")
def field(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders as users had them, one for each case; the tests beside those that take it make their own."""
    if not FIELD.is_file():
        pytest.skip("needs ../shared/field/make_inputs.py, which is not part of the repository")
    out = tmp_path_factory.mktemp("field")
    subprocess.run([sys.executable, str(FIELD), str(out)], check=True)
    return out
