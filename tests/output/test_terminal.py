from __future__ import annotations

from fedsynth.output import terminal_table


def test_numbers_are_aligned_right_and_text_left() -> None:
    rows = {"accuracy": {"synthetic": 0.925, "real": 0.969, "in": "pixels"}, "FD": {"synthetic": 118.4, "in": "CNN"}}
    assert terminal_table(rows).splitlines() == [
        "          synthetic   real  in",
        "accuracy      0.925  0.969  pixels",
        "FD              118         CNN",
    ]


def test_plain_values_need_no_header() -> None:
    assert terminal_table({"images": 1500, "report": "a.html"}) == "images  1,500\nreport  a.html"


def test_plain_values_and_rows_may_be_mixed() -> None:
    assert terminal_table({"a": 1, "b": {"x": 2}}).splitlines() == ["   value  x", "a      1", "b         2"]


def test_no_rows_make_no_table() -> None:
    assert terminal_table({}) == ""


def test_what_a_terminal_would_obey_is_seen_as_its_escape() -> None:
    (line,) = terminal_table({"\x1b[2J": "a\nb"}).splitlines()
    assert line == r"\x1b[2J  a\nb"
