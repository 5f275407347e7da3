from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from strategies.cooperation.advice import AHEAD, LEVEL, advice


def test_advice_names_no_page_that_a_wheel_lacks() -> None:
    for counts in (4, 40):
        said = advice(torch.full((10, 3), counts))
        assert "docs/" not in said
        assert re.findall(r"\d*\.\d+", said) == ["10.0"]


ROOT = Path(__file__).parents[3]


def test_the_numbers_of_the_advice_are_those_of_the_published_table() -> None:
    """The column "posterior" of the rows "as trained": a ratio of Fréchet distances for every seed."""
    page = (ROOT / "docs" / "results" / "regimes.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([\w ]+, \d+), as trained \| [^|]+ \| ([^|]+) \|", page, re.M))
    percent = {row: [round(100 * float(ratio)) for ratio in cell.strip(" *").split()] for row, cell in rows.items()}
    few = percent.pop("even, 40")
    others = [ratio for ratios in percent.values() for ratio in ratios]
    assert (len(few), len(others)) == (3, 15)
    assert (min(few), max(few)) == AHEAD
    assert (min(others), max(others)) == LEVEL
    assert "had 60 to 79 % of its" in advice(torch.full((10, 3), 4))
    assert "had 81 to 134 % of its" in advice(torch.full((10, 3), 40))


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        (torch.full((10, 3), 4), "10.0 effective holders in the mean, a holder 4 images of it: silos this small and"),
        (torch.full((10, 3), 7), "a holder 7 images of it: strategy = 'pooled' is likely to be as good"),
        (torch.eye(3, dtype=torch.int64) * 4, "1.0 effective holders in the mean, a holder 4 images of it: strategy"),
        # exp(-.75 ln .75 - .25 ln .25) = 1.755, beside a class that nobody holds
        (torch.tensor([[3, 0], [1, 0]]), "1.8 effective holders in the mean, a holder 2 images of it: strategy"),
    ],
)
def test_advice_follows_overlap_and_images(counts: torch.Tensor, said: str) -> None:
    assert said in advice(counts)
