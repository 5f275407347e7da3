"""Configuration keys as options of a command."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping, Sequence

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
    values = {key: getattr(options, key.replace("-", "_")) for key, _, _ in config_keys() if key in keys}
    return typed({key: text for key, text in values.items() if text is not None})


def typed(settings: Mapping[str, str]) -> dict[str, Scalar]:
    """Return keys and values as a TOML file would hold them; unknown keys stay for others to refuse."""
    texts = {key for key, _, info in config_keys() if info.annotation is str}
    return {key: text if key in texts else scalar(text) for key, text in settings.items()}


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
