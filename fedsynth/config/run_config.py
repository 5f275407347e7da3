"""Run configuration: the flat mapping that Flower hands to an app becomes frozen, validated objects, once.

:meth:`RunConfig.resolve` fills in what is ``"auto"``. See :mod:`fedsynth.config.values` for the sections.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from fedsynth.config.contradictions import refuse_contradictions
from fedsynth.config.keys import Key, Section, facts_of, kebab, parse
from fedsynth.config.methods import SETTINGS, StrategySettings
from fedsynth.config.privacy import Privacy
from fedsynth.config.recipe import Recipe, shared_defaults
from fedsynth.config.types import AUTO, Scalar
from fedsynth.config.values import DECLARED, PrivacyKeys, RecipeKeys, RunValues, StrategyKeys
from fedsynth.errors import UserError, did_you_mean
from fedsynth.plugins import is_plugin


class RunConfig(RunValues):
    """Everything a run depends on, in sections; frozen, and checked."""

    @classmethod
    def from_run_config(cls, mapping: Mapping[str, Scalar]) -> RunConfig:
        """Parse a flat mapping of kebab-case keys; absent keys take their default.

        Raises:
            UserError: unknown key, wrong type, value out of range, a key that does not act beside the others, or a
                contradiction between keys. The message names the key, the value, what is allowed, and the nearest
                match of a misspelt word.
        """
        for name in mapping:
            if name not in KEYS:
                raise UserError(f"unknown config key '{name}'{did_you_mean(name, KEYS)}")
        parsed = {
            section: parse(kind, {name: value for name, value in mapping.items() if KEYS[name].section == section})
            for section, kind in SECTIONS.items()
        }
        config = cls.model_validate(parsed)
        flat = config.to_run_config()
        for why in idle_keys(flat).values():
            raise UserError(why)
        refuse_contradictions(config)
        return config

    def resolve(self, defaults: Mapping[str, Scalar]) -> RunConfig:
        """Fill in the keys that are still ``"auto"``; values the user gave stay.

        Args:
            defaults: values by kebab-case key.
        """
        flat = self.to_run_config()
        filled = {key: value for key, value in defaults.items() if flat[key] == AUTO}
        config = RunConfig.from_run_config({**flat, **filled})
        return config.model_copy(update={"resolved": tuple(sorted({*self.resolved, *filled}))})


SECTIONS: dict[str, type[Section]] = {
    name: info.annotation
    for name, info in RunConfig.model_fields.items()
    if isinstance(info.annotation, type) and issubclass(info.annotation, Section)
}


def _docstring(kind: type[Any]) -> str:
    """Return what a class says of itself, also where ``python -OO`` has dropped it."""
    if kind.__doc__:
        return kind.__doc__
    (definition,) = ast.parse(inspect.getsource(kind)).body
    return (isinstance(definition, ast.ClassDef) and ast.get_docstring(definition)) or ""


def _keys() -> Iterator[Key]:
    for section, kind in SECTIONS.items():
        for field, info in kind.model_fields.items():
            facts, group, acts_with = facts_of(info), kind, dict[str, tuple[Scalar, ...]]()
            if kind is StrategyKeys:
                group = DECLARED[field][0]
                takers = tuple(strategy for strategy, settings in SETTINGS.items() if field in settings.model_fields)
                acts_with |= {"strategy": takers} if len(takers) < len(SETTINGS) else {}
            if kind is RecipeKeys:
                group = Recipe
            if kind is PrivacyKeys:
                group = Privacy
            heading = _docstring(group).splitlines()[0].removesuffix(".")
            commands = facts.commands or group.commands
            yield Key(kebab(field), section, heading, info, commands, {**acts_with, **facts.acts_with})


KEYS: dict[str, Key] = {key.name: key for key in _keys()}
"""Every configuration key by name, in order."""


def keys_of(command: str) -> frozenset[str]:
    """Return the names of the keys that a command besides ``run`` and ``sweep`` takes."""
    return frozenset(name for name, key in KEYS.items() if command in key.commands)


def idle_keys(flat: Mapping[str, Scalar]) -> dict[str, str]:
    """Return the keys that were given and do not act beside the others, with the sentence that refuses each.

    Given means: not at its default, which for a key of the chosen strategy is ``"auto"`` or that strategy's own.

    Args:
        flat: values of any keys, each valid by itself; absent keys have their default.
    """
    values = {name: flat.get(name, key.default) for name, key in KEYS.items()}
    settings = SETTINGS.get(str(values["strategy"]), StrategySettings)
    own = {kebab(field): info.default for field, info in settings.model_fields.items()} | shared_defaults(values)
    defaults = settings.defaults(values) | shared_defaults(values)
    acting = {**values, **{name: default for name, default in defaults.items() if values[name] == AUTO}}
    # Which settings a plug-in takes, and what their defaults are, its class says when it is built.
    known = [
        key for key in KEYS.values() if not (key.section == "strategy_keys" and is_plugin(str(values["strategy"])))
    ]
    return {
        key.name: why
        for key in known
        if values[key.name] not in (key.default, own.get(key.name, key.default))
        and (why := key.why_idle(values[key.name], acting))
    }


def without_idle_keys(flat: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Return the values whose keys act; the strategy, dataset, partition and sampler decide which do."""
    idle = idle_keys(flat)
    return {name: value for name, value in flat.items() if name not in idle}
