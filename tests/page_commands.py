"""The commands of pages, read as a shell would, and what knows them."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

from pages import Block, tokens_of

from fedsynth.cli import main

OURS = ("fedsynth", ".venv/bin/fedsynth")
STUDIES = re.compile(r"python -m (experiments[\w.]*)")


class _ParserError(Exception):
    """Carries a parser out of the command that has built it."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


def commands_of(block: Block) -> Iterator[list[str]]:
    """Yield the words of every command of a shell block, without Python's; options in brackets count as given."""
    text = re.sub(r"<<'(\w+)'\n.*?\n\1\n", "\n", block.text, flags=re.DOTALL).replace("\\\n", " ")
    text = re.sub(r"\[(--[^\]]*)\]", r"\1", text)
    text = re.sub(r'python -c "[^"]*"', "python -c ...", text)
    for line in text.splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def inline_commands(page: Path) -> Iterator[str]:
    """Yield the pieces of code within sentences that begin with a command of ours."""
    for token in tokens_of(page):
        for child in token.children or ():
            if child.type == "code_inline" and re.match(
                r"(\.venv/bin/)?fedsynth [a-z]|\.venv/bin/|python -m exp", child.content
            ):
                yield child.content


@cache
def parser_of(command: str) -> argparse.ArgumentParser:
    """Return the parser of ``fedsynth`` with the arguments of one subcommand."""

    def stop(parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        raise _ParserError(parser)

    with mock.patch.object(argparse.ArgumentParser, "parse_known_args", stop):
        try:
            main([command])
        except _ParserError as caught:
            return caught.parser
    raise AssertionError(command)


def parsed(words: list[str]) -> argparse.Namespace:
    """Parse a command of ours with nothing left over.

    Raises:
        AssertionError: the parser does not take it.
    """
    try:
        options, rest = parser_of(words[1]).parse_known_args(words[1:])
    except SystemExit as ended:
        if ended.code:
            raise AssertionError(" ".join(words)) from None
        return argparse.Namespace()  # it asks for help
    assert rest == [], f"{' '.join(words)}: unknown {rest}"
    return options


def unknown_words(words: list[str]) -> list[str]:
    """Return what the parser does not know of a command that may be a part of one: subcommands and options."""
    parser, unknown = parser_of(words[1]), []
    for word in words[1:]:
        subparsers = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        if word.startswith("--"):
            if word.split("=")[0] not in parser._option_string_actions:
                unknown.append(word)
        elif subparsers and word in subparsers[0].choices:
            parser = subparsers[0].choices[word]
        elif subparsers:
            unknown.append(word)
    return unknown
