"""What is written from the declarations of the keys: the block in ``pyproject.toml`` and ``docs/configuration.md``."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from itertools import groupby

from fedsynth.config.keys import Key, kebab
from fedsynth.config.methods import SETTINGS
from fedsynth.config.privacy import OF_DP_SUM, privacy_defaults
from fedsynth.config.recipe import RECIPES
from fedsynth.config.run_config import KEYS
from fedsynth.config.types import Scalar

BEGIN, END = "# Written by 'make config' from fedsynth/config: begin.", "# Written by 'make config': end."

_INTRODUCTION = """\
# Configuration

Written by `make config` from the declarations in `fedsynth/config/`. Every key is an option of `fedsynth run` and, but
for `run-name` and `resume`, of `fedsynth sweep`, and stands in `pyproject.toml`, where `flwr run` finds its default. A
value other than the default is refused where the key does not act beside the chosen strategy, dataset, partition,
sampler or other values. What `auto` becomes stands in the row; for a strategy's keys it is that strategy's own default,
for the recipe's that of the chosen recipe, and three keys of private training have another one in `dp-sum`. All are
named here.
"""


def commented_block() -> str:
    """Return the keys with their defaults and meanings, as TOML."""
    lines = [BEGIN]
    for heading, keys in _groups():
        lines += ["", *textwrap.wrap(f"{heading}.", 110, initial_indent="# ", subsequent_indent="# ")]
        lines += [f"{f'{key.name} = {_toml(key.default)}':33} # {_meaning(key)}" for key in keys]
    return "\n".join([*lines, END, ""])


def with_block(pyproject: str) -> str:
    """Return the text of ``pyproject.toml`` with the block between the markers written anew."""
    before, _, rest = pyproject.partition(BEGIN)
    _, _, after = rest.partition(f"{END}\n")
    return f"{before}{commented_block()}{after}"


def reference_page() -> str:
    """Return ``docs/configuration.md``."""
    lines = [_INTRODUCTION]
    for heading, keys in _groups():
        head = "| key | values | default | meaning | when a run continues |"
        lines += [f"## {heading}", "", head, "|---|---|---|---|---|"]
        for key in keys:
            conditions = "".join(f"; acts with {text}" for text in _conditions(key, most=99))
            change = f"may change {key.may_change_where}".strip() if key.may_change else "stays"
            cells = (f"`{key.name}`", key.allowed, _defaults(key), f"{key.meaning}{conditions}", change)
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
        lines.append("")
    return "\n".join(lines)


def own_defaults(key: Key) -> dict[str, Scalar]:
    """Return what ``"auto"`` of a key means, by the name of strategy or recipe; empty for keys that neither decides."""
    if key.section == "recipe_keys":
        found = {name: getattr(recipe, key.name.replace("-", "_")) for name, recipe in RECIPES.items()}
        return found | ({"dp-sum": OF_DP_SUM[key.name]} if key.name in OF_DP_SUM else {})
    if key.section == "privacy_keys":
        usual = privacy_defaults("")
        return {"default": usual[key.name], "dp-sum": OF_DP_SUM[key.name]} if key.name in usual else {}
    fields = {name: {kebab(field): info for field, info in cls.model_fields.items()} for name, cls in SETTINGS.items()}
    return {name: own[key.name].default for name, own in fields.items() if key.name in own}


def _groups() -> Iterator[tuple[str, list[Key]]]:
    for heading, keys in groupby(KEYS.values(), key=lambda key: (key.group, key.section, _takers(key))):
        group, _, takers = heading
        yield f"{group}: {takers}" if takers else group, list(keys)


def _takers(key: Key) -> str:
    return ", ".join(map(str, key.acts_with.get("strategy", ()))) if key.section == "strategy_keys" else ""


def _meaning(key: Key) -> str:
    conditions = "; ".join(_conditions(key, most=3))
    return f"{key.meaning} ({conditions})" if conditions else key.meaning


def _conditions(key: Key, most: int) -> list[str]:
    """Say with what values of other keys a key acts; conditions with more than ``most`` values are left out."""
    return [
        f"no {other}"
        if wanted == ("",)
        else f"{other}={' or '.join(value if isinstance(value, str) else _toml(value) for value in wanted)}"
        f"{_where(key, KEYS[other])}"
        for other, wanted in key.acts_with.items()
        if len(wanted) <= most and not (other == "strategy" and key.section == "strategy_keys")
    ]


def _where(key: Key, other: Key) -> str:
    """Say which strategies take ``other`` if ``key`` acts with more of them, beside which nothing is asked of it."""
    takers = other.acts_with.get("strategy", ())
    return f" in {' or '.join(map(str, takers))}" if {*key.acts_with.get("strategy", ())} - {*takers} and takers else ""


def _defaults(key: Key) -> str:
    by_value: dict[str, list[str]] = {}
    for strategy, default in own_defaults(key).items():
        by_value.setdefault(_toml(default), []).append(strategy)
    if not by_value:
        return f"`{_toml(key.default)}`"
    # Of recipes there is a default, of strategies none.
    usual = max(by_value, key=lambda value: ("default" in by_value[value], len(by_value[value])))
    others = [f"`{value}` ({', '.join(names)})" for value, names in by_value.items() if value != usual]
    return ", ".join([f"`auto`: `{usual}`", *others])


def _toml(value: Scalar) -> str:
    return json.dumps(value)
