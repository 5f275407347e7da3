"""Configuration keys as options of a command."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence

from fedsynth.config import Scalar, config_keys
from fedsynth.errors import UserError

ALL_KEYS = frozenset(key for key, _, _ in config_keys())


def add_keys(parser: argparse.ArgumentParser, keys: Collection[str] = ALL_KEYS) -> None:
    """Add one option a configuration key."""
    for key, section, info in config_keys():
        if key in keys:
            text = f"{info.description} ({section}; default: {info.default})"
            parser.add_argument(f"--{key}", metavar="VALUE", help=text.replace("%", "%%"))


def given_keys(options: argparse.Namespace, keys: Collection[str] = ALL_KEYS) -> dict[str, Scalar]:
    """Return the values of the keys that the user gave."""
    given: dict[str, Scalar] = {}
    for key, _, info in config_keys():
        text = getattr(options, key.replace("-", "_")) if key in keys else None
        if text is not None:
            given[key] = text if info.annotation is str else scalar(text)
    return given


def refuse_rest(command: str, rest: Sequence[str]) -> None:
    """Refuse words that the parser could not place.

    Raises:
        UserError: names the first.
    """
    if rest:
        raise UserError(f"unknown option '{rest[0]}'; 'fedsynth {command} --help' lists all")


def scalar(text: str) -> Scalar:
    """Read an option's value: true, false, a number, or text."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
