from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from fedsynth.cli.deployment import terminal_progress
from fedsynth.cli.deployment.terminal_progress import BarPrinter, printer

AT = "fedsynth 10:20:30"
ERASED = "\x1b[2K"


def seen(text: str) -> str:
    """Return what is shown, without the terminal's orders."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=100, _environ={"TERM": "xterm"})


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    console.file.truncate(0)
    console.file.seek(0)
    return text


def test_counted_lines_move_one_bar_and_the_last_stays(console: Console) -> None:
    bars = BarPrinter(console)
    bars.print(f"{AT} waiting for [b]3[/b] silos :smile:\n")
    assert seen(written(console)) == f"{AT} waiting for [b]3[/b] silos :smile:\n"
    bars.print("")
    assert written(console) == ""
    bars.print(f"{AT} local training: step 25/100 (25 %), loss 0.5, 30 s left\n")
    first = seen(written(console))
    assert "local training: step 25/100 " in first
    assert "loss 0.5, 30 s left" in first
    bars.print(f"{AT} local training: step 50/100 (50 %), loss 0.4, 20 s left\n")
    again = written(console)
    assert ERASED in again
    assert "step 50/100 " in seen(again)
    filled, before = (re.search(r"^[^\u2501]*(\u2501+)", seen(text)) for text in (again, first))
    assert filled
    assert before
    assert len(filled[1]) > len(before[1])
    bars.print(f"{AT} silo-1 left out\n")
    beside = seen(written(console))
    assert beside.index("silo-1 left out") < beside.index("step 50/100 "), "the bar stays below"
    bars.print(f"{AT} local training: step 100/100 (100 %), loss 0.3, took 40 s\n")
    last = written(console)
    assert last.index(ERASED) < last.index("step 100/100 (100 %), loss 0.3, took 40 s\n")
    bars.print(f"{AT} round 1/10 (10 %), time left unknown\n")
    assert "round 1/10 " in seen(written(console))
    bars.clear()
    assert written(console).endswith((ERASED, "\x1b[?25h")), "gone, and the cursor is back"


def test_a_long_line_is_not_cut(console: Console) -> None:
    line = f"{AT} {'x' * 300}"
    BarPrinter(console).print(f"{line}\n")
    assert seen(written(console)) == f"{line}\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("out", [io.StringIO(), Terminal()], ids=["pipe", "dumb terminal"])
def test_without_a_terminal_that_moves_there_are_lines(out: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal_progress.sys, "stdout", out)
    monkeypatch.setenv("TERM", "dumb" if out.isatty() else "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    lines = [f"{AT} round 1/10 (10 %), time left unknown", f"{AT} round 10/10 (100 %), took 3 s"]
    with printer() as show:
        for line in lines:
            show(f"{line}\n")
    assert out.getvalue().splitlines() == lines


def test_a_terminal_gets_the_bar_and_loses_it_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    out = Terminal()
    monkeypatch.setattr(terminal_progress.sys, "stdout", out)
    monkeypatch.setenv("TERM", "xterm")
    with printer() as show:
        show(f"{AT} round 1/10 (10 %), time left unknown\n")
        assert "round 1/10 " in seen(out.getvalue())
    assert out.getvalue().endswith((ERASED, "\x1b[?25h"))
