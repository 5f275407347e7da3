"""What the commands' options have in common: configuration keys, paths, setting files, words that are none."""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsynth.config import AUTO, KEYS, Key, RunConfig, Scalar
from fedsynth.config.documents import own_defaults
from fedsynth.config.keys import literal_words, one_of_words
from fedsynth.config.recipe import PAPER
from fedsynth.errors import UserError, did_you_mean
from fedsynth.files import read_text

ALL_KEYS = frozenset(KEYS)
FLAGS = frozenset(name for name, key in KEYS.items() if key.field.annotation is bool)
"""Keys that are true or false."""
LONGEST_CHOICES = 40
"""Letters of a key's words that help shows beside its option, and not below."""
_ANSWERS = ("true", "false", "yes", "no", "on", "off", "1", "0")


def add_keys(parser: argparse.ArgumentParser, besides: str, keys: Collection[str] = ALL_KEYS) -> None:
    """Add one option per configuration key, in groups: first what the chosen strategy alone decides.

    The strategy is looked for in the command line, which the parser holds as the default of ``words``.

    Args:
        parser: of a command.
        besides: what the command takes besides, as its usage says it.
        keys: that it takes.
    """
    # All keys by name would be thirty lines above every help and every error.
    parser.usage = f"{parser.prog} {besides} [--KEY VALUE ...]"
    strategy = _chosen_strategy(parser.get_default("words") or ())
    shown = [key for name, key in KEYS.items() if name in keys]
    first, groups = f"strategy {strategy}", dict[str, list[Key]]()
    for key in shown:
        if strategy in key.acts_with.get("strategy", (strategy,)):
            heading = first if key.section == "strategy_keys" else key.group
        else:
            heading = f"not with strategy {strategy}: {key.group}"
        groups.setdefault(heading, []).append(key)
    for heading in sorted(groups, key=lambda heading: (heading.startswith("not "), heading != first)):
        group = parser.add_argument_group(heading)
        for key in groups[heading]:
            _add_key(group, key, strategy)


def _add_key(group: argparse._ArgumentGroup, key: Key, strategy: str) -> None:
    """Add the option of a key; a key that is true or false is a flag, with ``--no-`` before its name for false."""
    default = f"(default: {_default(key, strategy)})"
    if key.name in FLAGS:
        group.add_argument(
            f"--{key.name}", action=argparse.BooleanOptionalAction, help=_escaped(f"{key.meaning} {default}")
        )
        return
    choices = "|".join(literal_words(key.field.annotation))
    shown = key.allowed == one_of_words([repr(word) for word in choices.split("|")]) and len(choices) <= LONGEST_CHOICES
    text = f"{key.meaning} {default}" if shown else f"{key.meaning}; {key.allowed} {default}"
    group.add_argument(f"--{key.name}", metavar=choices if shown else "VALUE", help=_escaped(text))


def _escaped(text: str) -> str:
    return text.replace("%", "%%")


def with_plain_flags(words: Sequence[str]) -> list[str]:
    """Return a command line whose keys that are true or false are flags, also where it has them as a file would.

    ``--early-stop true`` is ``--early-stop`` and ``--early-stop=false`` is ``--no-early-stop``.

    Raises:
        UserError: such a key has another value.
    """
    found, rest = list[str](), list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name not in FLAGS:
            found.append(word)
            continue
        if not equals and rest and rest[0].lower() in _ANSWERS:
            value = rest.pop(0)
        elif not equals:
            value = "true"
        if value not in ("true", "false"):
            raise UserError(f"{name} = {value!r}: must be true or false")
        found.append(f"--{name}" if value == "true" else f"--no-{name}")
    return found


def given_keys(options: argparse.Namespace, keys: Collection[str] = ALL_KEYS) -> dict[str, Scalar]:
    """Return the values of the keys that the user gave."""
    values = {name: getattr(options, name.replace("-", "_")) for name in KEYS if name in keys}
    flags = {name: value for name, value in values.items() if isinstance(value, bool)}
    return {**typed({name: text for name, text in values.items() if text is not None and name not in flags}), **flags}


def typed(settings: Mapping[str, str]) -> dict[str, Scalar]:
    """Return keys and values as a TOML file would hold them; unknown keys stay for others to refuse."""
    return {name: text if name in KEYS and KEYS[name].is_text else scalar(text) for name, text in settings.items()}


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
        hint = did_you_mean(word.split("=")[0], [f"--{name}" for name in known])
        raise UserError(f"unknown option '{word}'{hint}; 'fedsynth {command} --help' lists all")


def path_of(text: str) -> Path:
    """Read a path; ``~`` is the user's home, also where no shell has seen to it."""
    return Path(text).expanduser()


def read_toml(path: Path, meant: str) -> dict[str, Any]:
    """Return the content of a TOML file: UTF-8, or with a byte-order mark UTF-16, as editors on Windows save.

    Raises:
        UserError: there is no such file, or it is not TOML; the message does not name it.
    """
    try:
        return tomllib.loads(read_text(path))
    except OSError as error:
        raise UserError(f"{error.strerror}; give a TOML file of {meant}") from None
    except ValueError as error:
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


def _default(key: Key, strategy: str) -> str:
    own = own_defaults(key)
    if key.section == "recipe_keys":
        usual, papers = map(_shown, (own.get(strategy, own["default"]), own[PAPER]))
        return f"auto, here {usual}" if usual == papers else f"auto, here {usual}; {papers} with recipe = {PAPER}"
    if key.default == AUTO and own:
        here = own.get(strategy, own.get("default"))
        return "auto" if here is None else f"auto, here {_shown(here)}"
    return _shown(key.default)


def _shown(value: Scalar) -> str:
    """Return a value as an option takes it."""
    return str(value).lower() if isinstance(value, bool) else str(value) or "empty"


def _chosen_strategy(words: Sequence[str]) -> str:
    """Return the strategy that a command line names, itself or in its setting file; otherwise the default."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, given, value = word.partition("=")
        if name == "--strategy" and (given or following):
            return value if given else following
    for word in words:
        if word.endswith(".toml") and Path(word).is_file():
            try:
                return str(read_toml(Path(word), "keys").get("strategy", RunConfig().run.strategy))
            except UserError:
                break
    return RunConfig().run.strategy
