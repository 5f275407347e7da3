"""The page on the library, whose names and words are those of the code."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import fedsynth
from fedsynth.api.synthesis import SILO_KEYS

PAGE = (Path(__file__).parents[1] / "docs" / "library.md").read_text()


def test_every_public_name_and_word_is_on_the_page() -> None:
    for name in {*fedsynth.__all__} - {"__version__"}:
        assert f"fedsynth.{name}" in PAGE
    assert all(f"`{word}" in PAGE or f'"{word}"' in PAGE for word in SILO_KEYS)
    for name in (name for name, kept in vars(fedsynth.Run).items() if not name.startswith("_") and name != "path"):
        assert f"run.{name}" in PAGE, name
    shown = re.search(r"`fedsynth\.synthesise\((.*)\)` runs", PAGE)
    assert shown
    assert [*inspect.signature(fedsynth.synthesise).parameters] == re.findall(r"(\w+)(?:=\w+)?(?:,|$)", shown[1])


def test_the_code_of_the_page_is_python() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        compile(block, "docs/library.md", "exec")
