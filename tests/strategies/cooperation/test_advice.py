from __future__ import annotations

import re
from pathlib import Path

from strategies.cooperation.advice import ADVICE, LEVEL

ROOT = Path(__file__).parents[3]


def test_the_numbers_of_the_advice_are_those_of_the_published_table() -> None:
    """The column "posterior" of the rows "as trained": a ratio of Fréchet distances for every seed."""
    page = (ROOT / "docs" / "results" / "regimes.md").read_text(encoding="utf-8")
    table = page[: page.index("\n## ")]
    cells = re.findall(r"^\| [\w ]+, \d+, as trained \| [^|]+ \| ([^|]+) \|", table, re.M)
    percent = [round(100 * float(ratio)) for cell in cells for ratio in cell.strip(" *").split()]
    assert percent
    assert len(percent) == 3 * len(cells)
    assert (min(percent), max(percent)) == LEVEL
    assert f"40 images a silo: dfd had {LEVEL[0]} to {LEVEL[1]} % of its" in ADVICE
    assert set(re.findall(r"^\| [\w ]+, (\d+), as trained", table, re.M)) == {"40"}
    assert "docs/" not in ADVICE, "a wheel has no pages"
