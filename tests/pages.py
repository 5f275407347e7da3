"""The pages of this repository, parsed: headings, links and command blocks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "experiments").glob("*.md")])
RUNNABLE = "<!-- run -->"
"""Stands above a block whose commands are cheap enough to be run by the tests."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str
    runnable: bool


@cache
def tokens_of(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@cache
def anchors_of(page: Path) -> set[str]:
    """Return the anchors that a forge gives to the headings of a page."""
    seen: dict[str, int] = {}
    anchors = set()
    tokens = tokens_of(page)
    for opening, inline in pairwise(tokens):
        if opening.type == "heading_open":
            words = "".join(child.content for child in inline.children or ())
            slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
            count = seen[slug] = seen.get(slug, -1) + 1
            anchors.add(f"{slug}-{count}" if count else slug)
    return anchors


def targets_of(page: Path) -> Iterator[str]:
    """Yield where the links and pictures of a page lead."""
    for token in tokens_of(page):
        for child in token.children or ():
            target = child.attrs.get("href", child.attrs.get("src"))
            if target is not None:
                yield str(target)


def blocks_of(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page."""
    before = None
    for token in tokens_of(page):
        if token.type == "fence":
            assert token.map
            runnable = before is not None and before.type == "html_block" and before.content.strip() == RUNNABLE
            yield Block(page, token.map[0] + 1, token.info.strip(), token.content, runnable)
        before = token
