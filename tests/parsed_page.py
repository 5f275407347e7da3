"""A page as a browser sees it."""

from __future__ import annotations

import base64
from html.parser import HTMLParser
from pathlib import Path


class ParsedPage(HTMLParser):
    """Tags with their attributes, and the text outside of the style; every element must be closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(self.html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and self.open[-1] != "style":
            self.text.append(" ".join(data.split()))

    def pictures(self) -> list[bytes]:
        sources = [attributes["src"] or "" for tag, attributes in self.tags if tag == "img"]
        assert all(source.startswith("data:image/png;base64,") for source in sources)
        return [base64.b64decode(source.split(",", 1)[1], validate=True) for source in sources]

    def headings(self) -> list[str | None]:
        return [attributes["id"] for tag, attributes in self.tags if tag == "h2"]

    def after(self, text: str, count: int) -> list[str]:
        """That text and what follows it."""
        start = self.text.index(text)
        return self.text[start : start + count]

    def check_sealed(self) -> None:
        """It runs nothing and asks for nothing from outside."""
        assert not {tag for tag, _ in self.tags} & {"script", "link", "iframe", "object", "embed"}
        assert not [words for words in ("http://", "https://", "url(") if words in self.html]
        policy = next(a["content"] for _, a in self.tags if a.get("http-equiv") == "Content-Security-Policy")
        assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
