"""README and docs: every command that stands there exists, and takes what it is given; cheap ones are run."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
from page_commands import OURS, STUDIES, commands_of, inline_commands, parsed, unknown_words
from pages import PAGES, ROOT, Block, blocks_of, name_of, tokens_of

from fedsynth.cli import main
from fedsynth.cli.options import given_keys
from fedsynth.config import KEYS, RunConfig

BLOCKS = [
    block
    for page in PAGES
    for block in blocks_of(page)
    if block.language in ("bash", "sh") or (not block.language and re.search(r"^(\S*fedsynth|make) ", block.text, re.M))
]
FOR_A_CLONE = ("README.md", "CONTRIBUTING.md", "experiments/README.md")
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def at(block: Block) -> str:
    return f"{name_of(block.page)}:{block.line}"


def check_study(text: str) -> None:
    """Of a study or benchmark: its file is there, and its options stand in it or are keys."""
    found = STUDIES.search(text)
    if found and not found[1].endswith("NAME"):
        file = ROOT / f"{found[1].replace('.', '/')}.py"
        source = "".join(path.read_text(encoding="utf-8") for path in (file, ROOT / "experiments" / "repeated_runs.py"))
        options = re.findall(r"(?<=\s)--([a-z][a-z-]+)", text)
        assert [option for option in options if f'"--{option}"' not in source and option not in KEYS] == []


@pytest.mark.parametrize("block", BLOCKS, ids=at)
def test_commands_of_a_block_take_what_they_are_given(block: Block) -> None:
    for words in commands_of(block):
        if words[0] in OURS and "…" in words:
            assert unknown_words([word for word in words if word != "…"]) == []
        elif words[0] in OURS:
            options = parsed(words)
            if words[1] == "run" and vars(options) and options.resume is None:
                check_settings(options)
        elif words[0] == "make":
            assert {word for word in words[1:] if "=" not in word} <= TARGETS
        check_study(shlex.join(words))


def check_settings(options: object) -> None:
    """The keys of a run fit together; a file that the page does not ship holds none that we know of."""
    given = given_keys(options)  # type: ignore[arg-type]
    setting = getattr(options, "setting", None)
    if setting is not None and (ROOT / setting).is_file():
        given = tomllib.loads((ROOT / setting).read_text(encoding="utf-8")) | given
    if getattr(options, "superlink", None) is not None:
        given["dataset"] = "silos"
    if not any(":" in str(given.get(key, "")) for key in ("strategy", "dataset", "sampler")):
        RunConfig.from_run_config(given)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_within_sentences_are_known(page: Path) -> None:
    unknown = []
    for text in inline_commands(page):
        words = text.replace("[", "").replace("]", "").replace("…", "").split()
        if words[0] in OURS:
            unknown += [f"{text}: {word}" for word in unknown_words([word.rstrip(",") for word in words])]
        check_study(text)
        assert not text.startswith("python"), f"{text}: needs .venv/bin/"
    assert unknown == []


@pytest.mark.parametrize("block", BLOCKS, ids=at)
def test_commands_work_in_a_fresh_shell(block: Block) -> None:
    """A tutorial puts .venv/bin on the path for all pages of the site: other pages, and Flower's commands, need it."""
    brings_its_path = re.search(r"PATH=\$PWD/\.venv/bin|\.venv/bin/activate|\b(pipx|uvx|uv tool|pip) ", block.text)
    for words in commands_of(block):
        bare = words[0].endswith("flwr") or (words[0] == "fedsynth" and name_of(block.page) in FOR_A_CLONE)
        assert not bare or brings_its_path, shlex.join(words)
        assert not STUDIES.search(shlex.join(words)) or words[0].startswith(".venv/bin/")


def test_a_silo_needs_as_many_commands_and_things_as_its_page_says() -> None:
    page = ROOT / "docs" / "silo.md"
    (block,) = (block for block in BLOCKS if block.page == page)
    things = sum(token.type == "tr_open" for token in tokens_of(page)) - 1
    text = page.read_text(encoding="utf-8")
    assert ("in five commands", len(list(commands_of(block)))) == (text.split("\n")[0].removeprefix("# A silo "), 5)
    assert "Six things to know:" in text
    assert things == 6


RUNNABLE = [block for block in BLOCKS if block.runnable]


@pytest.mark.parametrize("block", RUNNABLE, ids=at)
def test_blocks_that_are_marked_run(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    for words in commands_of(block):
        assert words[0] in OURS
        try:
            status = main(words[1:])
        except SystemExit as ended:
            status = int(ended.code or 0)
        assert status == 0, shlex.join(words)


def test_some_blocks_are_run() -> None:
    assert len(RUNNABLE) >= 6
