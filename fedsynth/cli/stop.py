"""Stop the SuperLinks that local simulations left behind."""

from __future__ import annotations

import argparse

from fedsynth.cli.deployment.flower import flower_home, stop_superlinks
from fedsynth.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``stop`` takes no arguments."""


def execute(options: argparse.Namespace, rest: list[str]) -> int:
    """Stop every local SuperLink of this project's ``FLWR_HOME`` with all that it started."""
    if rest:
        raise UserError(f"fedsynth stop takes no arguments, not '{rest[0]}'")
    home = flower_home()
    count = stop_superlinks(home)
    print(f"stopped {count} SuperLink(s) of {home}" if count else f"no local SuperLink of {home} is running")
    return 0
