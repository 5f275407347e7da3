"""What a silo may send where text is expected."""

from __future__ import annotations

FORGED_LINE = "x\n2026-01-01 00:00:00,000 INFO run finished"
CLEARED_SCREEN = "\x1b[2J\x1b]0;title\x07"
TURNED = "\u202egnp.exe\u2066"
LONG = "long " * 2000
SURROGATE = "\ud800"
MARKUP = "</td><script>alert(1)</script>|`[a](http://evil.example)`$x$"

HOSTILE = f"{FORGED_LINE}{CLEARED_SCREEN}{TURNED}{MARKUP}\r\0\x85\u2028{LONG}"


def unshown(text: str) -> set[str]:
    """The characters of a file that no terminal should get from it; its own line breaks are none of them."""
    return {letter for letter in text if not letter.isprintable()} - {"\n"}
