from __future__ import annotations

import csv
import io

import pytest

from fedsynth.output.table_formats import csv_text


def cells(*row: object) -> list[str]:
    return next(iter(csv.reader(io.StringIO(csv_text(row, [])))))


@pytest.mark.parametrize(
    "text",
    ['=HYPERLINK("http://a")', "+1+cmd", "-1+cmd|' /C calc'!A0", "@SUM(1)", "\t=1", " =1", "\n=1", "- 1", "-=1"],
)
def test_text_that_a_spreadsheet_would_compute_is_guarded(text: str) -> None:
    assert cells("a", text) == ["a", f"'{text}"]


@pytest.mark.parametrize(
    "value",
    [-1.5, -3, float("-inf"), "-1.5", "+2", "-1.5e-07", "-.5", "-inf", "-1.5 ± 0.25", "-", "−1.5", "a=b", "3-2"],
)
def test_numbers_and_other_text_stay(value: object) -> None:
    assert cells(value) == [str(value)]


def test_the_head_and_every_row_are_guarded_and_none_is_empty() -> None:
    text = csv_text(["row", "fd minus =x", "=head"], [["=a", None, -2.5], ["b, c", 'say "@"', 1]])
    rows = [["row", "fd minus =x", "'=head"], ["'=a", "", "-2.5"], ["b, c", 'say "@"', "1"]]
    assert list(csv.reader(io.StringIO(text))) == rows
