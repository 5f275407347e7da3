"""The ``fedsynth`` command. One module a subcommand; the apps are reached only through ``flwr`` as a subprocess."""

from __future__ import annotations

import argparse
import ast
import contextlib
import logging
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from fedsynth.cli.stopping import StoppedError, stopped_by_signals
from fedsynth.errors import RunError, UserError

COMMANDS = (
    *("run", "sweep", "status", "stop", "doctor"),
    *("draw", "evaluate", "compare", "table"),
    *("link", "silo", "train-local"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit status; errors a user can fix are printed without a traceback."""
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    words = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="fedsynth", description=__doc__.split(".")[0])
    subparsers = parser.add_subparsers(dest="command", required=True)
    for name in COMMANDS:
        text = _docstring(name)
        subparser = subparsers.add_parser(name, help=text.splitlines()[0], description=text, allow_abbrev=False)
        if name in words:
            subparser.set_defaults(words=words)
            _module(name).add_arguments(subparser)
    options, rest = parser.parse_known_args(words)
    try:
        with stopped_by_signals():
            return int(_module(options.command).execute(options, rest))
    except (UserError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except StoppedError as stopped:
        with contextlib.suppress(OSError):  # SIGHUP: the terminal has gone
            print(stopped, file=sys.stderr)
        return 128 + stopped.number
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _module(command: str) -> Any:
    """Import the module of a subcommand; not of all of them, since some wait seconds for torch."""
    return import_module(f"{__name__}.{command.replace('-', '_')}")


def _docstring(command: str) -> str:
    """Read what a subcommand says of itself, without importing it."""
    source = Path(__file__).with_name(f"{command.replace('-', '_')}.py").read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(source)) or ""
