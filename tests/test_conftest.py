from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import pytest

def test_one():
    pytest.skip("{reason}")

def test_another():
    pass
"""


@pytest.mark.parametrize(
    ("reason", "ci", "status"),
    [("no chromium here", "true", 0), ("as I like", "true", 1), ("as I like", "", 0)],
)
def test_a_skip_that_nobody_allowed_fails_where_ci_says_so(reason: str, ci: str, status: int, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TESTS.format(reason=reason))
    (tmp_path / "conftest.py").write_text(Path(__file__).with_name("conftest.py").read_text())
    (tmp_path / "pytest.ini").touch()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path],
        cwd=tmp_path,
        env={**os.environ, "CI": ci},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stdout
    assert (f"unexpected skip, which fails where CI=true: test_it.py::test_one: {reason}" in done.stdout) == (
        reason == "as I like"
    )
