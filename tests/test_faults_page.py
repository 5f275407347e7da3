"""docs/faults.md: every fault names a test that exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINES = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8").splitlines()
ROWS = [line for line in LINES if line.startswith("| ") and not line.startswith("| fault ")]


def names_in(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip()[:40])
def test_row_has_four_columns_and_names_a_test(row: str) -> None:
    fault, happens, _, test = (cell.strip() for cell in row.strip("|").split("|"))
    assert fault
    assert happens
    found = re.fullmatch(r"`(tests/[a-z_/]+\.py)::(test_\w+)`", test)
    assert found, test
    assert found[2] in names_in(ROOT / found[1])


def test_the_page_has_its_tables() -> None:
    assert len(ROWS) >= 40
