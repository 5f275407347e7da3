"""What the commands' options have in common: configuration keys, paths, setting files, words that are none."""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsynth.config import Scalar, config_keys
from fedsynth.errors import UserError, did_you_mean

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


def refuse_rest(command: str, rest: Sequence[str], known: Collection[str] = ()) -> None:
    """Refuse words that the parser could not place.

    Args:
        command: as it is called.
        rest: the words.
        known: options that may have been meant.

    Raises:
        UserError: names the first.
    """
    for word in rest:
        hint = did_you_mean(word.split("=")[0].lstrip("-"), known)
        raise UserError(f"unknown option '{word}'{hint}; 'fedsynth {command} --help' lists all")


def path_of(text: str) -> Path:
    """Read a path; ``~`` is the user's home, also where no shell has seen to it."""
    return Path(text).expanduser()


def read_toml(path: Path, meant: str) -> dict[str, Any]:
    """Return the content of a TOML file.

    Raises:
        UserError: there is no such file, or it is not TOML; the message does not name it.
    """
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{error.strerror}; give a TOML file of {meant}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"not TOML: {error}") from None


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
