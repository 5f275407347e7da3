"""The ``fedsynth`` command. One module a subcommand; the apps are reached only through ``flwr`` as a subprocess."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from fedsynth.cli import compare, doctor, draw, evaluate, link, run, silo, status, stop, sweep, table, train_local
from fedsynth.errors import RunError, UserError

COMMANDS = {
    "run": run,
    "sweep": sweep,
    "status": status,
    "stop": stop,
    "doctor": doctor,
    "draw": draw,
    "evaluate": evaluate,
    "compare": compare,
    "table": table,
    "link": link,
    "silo": silo,
    "train-local": train_local,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit status; errors a user can fix are printed without a traceback."""
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    parser = argparse.ArgumentParser(prog="fedsynth", description=__doc__.split(".")[0])
    subparsers = parser.add_subparsers(dest="command", required=True)
    for name, module in COMMANDS.items():
        summary = (module.__doc__ or "").splitlines()[0]
        subparser = subparsers.add_parser(name, help=summary, description=module.__doc__, allow_abbrev=False)
        module.add_arguments(subparser)
    options, rest = parser.parse_known_args(arguments)
    try:
        return int(COMMANDS[options.command].execute(options, rest))
    except (UserError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
