from __future__ import annotations

import numpy as np
import pytest

from fedsynth.units import column_names, human_bytes, show, show_setting


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.9, "1 kB"),
        (1500, "1.5 kB"),
        (999_999, "1 MB"),
        (2.5e9, "2.5 GB"),
        (3e15, "3,000.0 TB"),
    ],
)
def test_bytes_use_the_largest_unit_below(count: float, text: str) -> None:
    assert human_bytes(count) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.9, "0.900"),
        (18.43, "18.4"),
        (1019.4, "1,019"),
        (1437, "1,437"),
        (np.float32(0.5), "0.500"),
        (np.int64(1437), "1,437"),
        (float("nan"), "-"),
        (None, "-"),
        (True, "true"),
        ("92 %", "92 %"),
        ([1, 2], "[1, 2]"),
    ],
)
def test_show_is_short(value: object, text: str) -> None:
    assert show(value) == text


def test_settings_are_exact() -> None:
    values = (20260101, 0.0002, "dfd", None, ["é"])
    assert [show_setting(value) for value in values] == ["20260101", "0.0002", "dfd", "null", '["é"]']


def test_columns_keep_the_order_of_first_appearance() -> None:
    assert column_names([{"b": 1}, {"a": 1, "b": 2}, {"c": 0}]) == ["b", "a", "c"]


def test_a_column_that_earlier_rows_lack_comes_where_its_row_has_it() -> None:
    assert column_names([{"a": 1, "N": 2}, {"a": 1, "±": 0, "b": 3, "N": 2}, {"x": 1}]) == ["a", "±", "b", "N", "x"]
