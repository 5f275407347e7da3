from __future__ import annotations

import re
from pathlib import Path

from fedsynth.messages import REQUESTS

ROOT = Path(__file__).parents[1]


def test_every_test_that_the_page_names_is_there() -> None:
    page = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[^`:]+\.py)::(\w+)`", page)
    assert len(named) >= 35
    missing = [
        f"{file}::{name}"
        for file, name in named
        if not (ROOT / file).is_file()
        or not re.search(rf"^\s*(def|class) {name}\b", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert missing == []


def test_every_message_stands_on_the_page_of_what_leaves_a_silo() -> None:
    page = (ROOT / "docs" / "what-leaves-a-silo.md").read_text(encoding="utf-8")
    assert [request.kind for request in REQUESTS if f"`{request.kind}`" not in page] == []
