"""Text files are UTF-8 on every machine, whatever its locale: no call leaves the encoding to it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAMS = ("fedsynth", "clients", "strategies", "experiments")
TEXT_FUNCTIONS = {"read_text": 0, "write_text": 1, "FileHandler": 2, "TextIOWrapper": 1}
"""Functions that always read or write text, and the place of the encoding among their arguments."""
OPENING = {"open", "fdopen", "NamedTemporaryFile", "TemporaryFile", "SpooledTemporaryFile"}
PROCESSES = {"run", "Popen", "check_output"}
A_MODE = re.compile("[rwaxbt+]+")


def leaves_encoding_open(call: ast.Call) -> bool:
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in keywords:
        return False
    if name in TEXT_FUNCTIONS:
        return len(call.args) <= TEXT_FUNCTIONS[name]
    if name in PROCESSES:
        return "text" in keywords or "universal_newlines" in keywords
    return name in OPENING and is_text(call, name, keywords.get("mode"))


def is_text(call: ast.Call, name: str, mode: ast.expr | None) -> bool:
    """Whether a call opens a file as text; ``Image.open(path)``, ``RunFolder.open(path)`` and ``os.open`` do not."""
    place = 0 if name.endswith("TemporaryFile") or (name == "open" and isinstance(call.func, ast.Attribute)) else 1
    given = mode or (call.args[place] if len(call.args) > place else None)
    if given is None:
        return not name.endswith("TemporaryFile") and (place == 1 or not call.args)
    text = getattr(given, "value", None)
    return isinstance(text, str) and bool(A_MODE.fullmatch(text)) and "b" not in text


def calls_of(source: str) -> list[int]:
    nodes = ast.walk(ast.parse(source))
    return [node.lineno for node in nodes if isinstance(node, ast.Call) and leaves_encoding_open(node)]


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_text_file_is_utf_8(program: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in sorted((ROOT / program).rglob("*.py"))
        for line in calls_of(path.read_text(encoding="utf-8"))
    ]
    assert not found, f"give encoding='utf-8': {', '.join(found)}"


def test_the_search_finds_what_it_is_for() -> None:
    left_open = """
path.read_text()
path.write_text("é")
path.read_text(errors="replace")
open(path)
open(path, "w")
path.open()
path.open("a")
os.fdopen(handle, "w")
tempfile.NamedTemporaryFile("w")
logging.FileHandler(path)
subprocess.run(command, text=True)
"""
    fine = """
path.read_text("utf-8")
path.write_text("é", encoding="utf-8")
open(path, "rb")
open(path, mode="wb")
path.open("ab")
path.open("w", encoding="utf-8")
Image.open(path)
RunFolder.open(Path("x"))
tempfile.NamedTemporaryFile()
os.open(path, os.O_WRONLY)
logging.FileHandler(path, encoding="utf-8")
subprocess.run(command)
"""
    assert calls_of(left_open) == list(range(2, 13))
    assert calls_of(fine) == []
