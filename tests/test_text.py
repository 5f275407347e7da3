from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hostile_text import CLEARED_SCREEN, FORGED_LINE, HOSTILE, LONG, SURROGATE, TURNED

from fedsynth.errors import UserError
from fedsynth.text import check_silo_name, printable, silo_name_problem, visible, without_machine_paths


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Ärzte am Fluß, 2 × C:\\new", "Ärzte am Fluß, 2 × C:\\new"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        (CLEARED_SCREEN, r"\x1b[2J\x1b]0;title\x07"),
        (TURNED, r"\u202egnp.exe\u2066"),
        (f"a{SURROGATE}b\udcff", r"a\ud800b\udcff"),
        ("\u2028\u00a0\U000e0001", r"\u2028\xa0\U000e0001"),
        (UserError("no\nimages"), r"no\nimages"),
        (None, "None"),
    ],
)
def test_what_is_not_printable_is_seen_as_its_escape(text: object, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown


def test_every_character_becomes_printable_and_the_printable_ones_stay() -> None:
    for number in range(sys.maxunicode + 1):
        letter = chr(number)
        shown = visible(letter)
        assert shown.isprintable()
        assert (shown == letter) == letter.isprintable()


@pytest.mark.parametrize("text", [LONG, HOSTILE, "\n" * 60, "a" * 40, "a" * 41])
def test_the_result_is_bounded_and_says_that_it_is_cut(text: str) -> None:
    shown = printable(text, 40)
    assert len(shown) <= 40
    assert shown.endswith("…") == (len(visible(text)) > 40)
    assert visible(text).startswith(shown.removesuffix("…"))


@pytest.mark.parametrize("name", ["a", "St. Mary's", "Ärzte am Fluß", "診療所", "x" * 64, "silo-3"])
def test_names_that_a_silo_may_have(name: str) -> None:
    assert silo_name_problem(name) == ""
    check_silo_name(name)


@pytest.mark.parametrize(
    "name", ["", " ", "a ", "x" * 65, LONG, FORGED_LINE, CLEARED_SCREEN, TURNED, SURROGATE, 3, b"a"]
)
def test_names_that_it_may_not_have(name: object) -> None:
    problem = silo_name_problem(name)
    assert "must be 1 to 64 printable characters" in problem
    assert problem.isprintable()
    assert len(problem) < 250
    if isinstance(name, str):
        with pytest.raises(UserError, match="give another --silo-name"):
            check_silo_name(name)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("run folder /home/jane doe/runs/a", "run folder a"),
        ("more in /home/jane doe/runs/a/log.txt, 3 lines", "more in log.txt, 3 lines"),
        ("go on with 'fedsynth run --resume '/home/jane doe/runs/a''", "go on with 'fedsynth run --resume 'a''"),
        ("/home/jane doe/runs/a-2 is another", "…/jane doe/runs/a-2 is another"),
        ("cannot write '/srv/two words/x.png': full", "cannot write '…/x.png': full"),
        ('File "/opt/lib/torch/nn.py", line 3', 'File "…/nn.py", line 3'),
        ("data-root=/data and (/mnt/images/)", "data-root=…/data and (…/images)"),
        ("loss 1/8, 1 / 2, km/h, a/b, https://a.example/b/c", "loss 1/8, 1 / 2, km/h, a/b, https://a.example/b/c"),
    ],
)
def test_a_file_for_others_holds_no_path_of_this_machine(text: str, kept: str) -> None:
    assert without_machine_paths(text, Path("/home/jane doe/runs/a")) == kept
    assert without_machine_paths(kept, Path("/home/jane doe/runs/a")) == kept
