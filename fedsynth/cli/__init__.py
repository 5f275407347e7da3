"""The ``fedsynth`` command. One module a subcommand; the apps are reached only through ``flwr`` as a subprocess."""

from __future__ import annotations

import argparse
import ast
import contextlib
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from fedsynth import __version__
from fedsynth.cli.stopping import SIGNALLED, StoppedError, stopped_by_signals
from fedsynth.cli.streams import ending_with_its_reader, replace_what_cannot_be_shown
from fedsynth.errors import RunError, UserError, unknown_choice
from fedsynth.logs import LONGEST_LINE, log_of_command
from fedsynth.text import printable

COMMANDS = (
    *("run", "sweep", "status", "stop", "doctor"),
    *("draw", "evaluate", "compare", "table", "audit", "push"),
    *("link", "silo", "train-local", "privacy-plan"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit status; errors a user can fix are printed without a traceback."""
    replace_what_cannot_be_shown()
    return ending_with_its_reader(lambda: _run(sys.argv[1:] if arguments is None else arguments))


def command() -> NoReturn:
    """Run the command as a process of its own, and end it."""
    status = main()
    if status > SIGNALLED:
        # All is cleaned up. Python would look through all that torch has made for garbage, for seconds on a busy
        # machine, and libraries would complain of it below the last line.
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)
    sys.exit(status)


def _run(words: Sequence[str]) -> int:
    log_of_command()
    parser = argparse.ArgumentParser(prog="fedsynth", description=_docstring("__init__").split(".")[0])
    parser.add_argument("--version", action="version", version=f"fedsynth {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True)
    for name in COMMANDS:
        text = _docstring(name)
        subparser = subparsers.add_parser(name, help=text.splitlines()[0], description=text, allow_abbrev=False)
        if name in words:
            subparser.set_defaults(words=words)
            _module(name).add_arguments(subparser)
    try:
        if words and not words[0].startswith("-") and words[0] not in COMMANDS:
            raise unknown_choice("command", words[0], COMMANDS)
        options, rest = parser.parse_known_args(_with_plain_flags(words) if set(words) & set(COMMANDS) else words)
        with stopped_by_signals():
            return int(_module(options.command).execute(options, rest))
    except (UserError, RunError) as error:
        print(f"error: {printable(error, LONGEST_LINE)}", file=sys.stderr)
        return 2
    except StoppedError as stopped:
        with contextlib.suppress(OSError):  # SIGHUP: the terminal has gone
            print(stopped, file=sys.stderr)
        return SIGNALLED + stopped.number
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _with_plain_flags(words: Sequence[str]) -> Sequence[str]:
    from fedsynth.cli.options import with_plain_flags  # only here: it knows all keys, and --version needs none

    return with_plain_flags(words)


def _module(command: str) -> Any:
    """Import the module of a subcommand.

    At their top none imports what takes long: what needs no network answers within a second.
    """
    return import_module(f"{__name__}.{command.replace('-', '_')}")


def _docstring(command: str) -> str:
    """Read what a subcommand says of itself, without importing it; ``python -OO`` would have dropped it."""
    source = Path(__file__).with_name(f"{command.replace('-', '_')}.py").read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(source)) or ""
