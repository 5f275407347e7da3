from __future__ import annotations

import pytest

from fedsynth.output.class_folders import folder_names


def test_numbers_are_padded_so_that_sorting_keeps_their_order() -> None:
    names = folder_names([str(i) for i in range(11)])
    assert names[:3] == ("00", "01", "02")
    assert list(names) == sorted(names)


def test_one_word_among_numbers_stops_the_padding() -> None:
    assert folder_names(["1", "10", "other"]) == ("1", "10", "other")


def test_safe_names_are_kept() -> None:
    classes = ["Male smiling", "t-shirt+top", "élan", "v1.5 (old)", "protest", "contested", "_a"[1:]]
    assert folder_names(classes) == tuple(classes)


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("T-shirt/top", "T-shirt_top"),
        ("..", "unnamed"),
        (".hidden", "hidden"),
        ("__pycache__", "pycache__"),
        ("a\\b:c\n", "a_b_c_"),
        ("trailing. ", "trailing"),
        ("test", "(test)"),
        ("x_test_positive", "x_(test)_positive"),
        ("2024-05-17", "2024_05_17"),
        ("CON", "(CON)"),
        ("x" * 500, "x" * 60),
    ],
)
def test_unsafe_names_are_changed(name: str, folder: str) -> None:
    assert folder_names([name, "other"]) == (folder, "other")


def test_names_that_would_meet_are_told_apart() -> None:
    assert folder_names(["a/b", "a_b", "a:b", "A_B"]) == ("a_b-3", "a_b", "a_b-4", "A_B-2")


def test_equal_numbers_and_long_names_stay_distinct() -> None:
    classes = ["1", "01", "001", *("y" * 100 + str(i) for i in range(5))]
    assert len({name.casefold() for name in folder_names(classes[:3])}) == 3
    assert len(set(folder_names(classes))) == len(classes)
