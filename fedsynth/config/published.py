"""A run's settings as others see them: what acted, with what "auto" became, and no path of anybody's machine."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import PurePath

from fedsynth.config.methods import SETTINGS, StrategySettings
from fedsynth.config.recipe import shared_defaults
from fedsynth.config.run_config import KEYS, RunConfig
from fedsynth.config.types import AUTO, REAL_SILOS, Scalar
from fedsynth.plugins import is_plugin


def without_paths(flat: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Return the settings with the last name alone of every path."""
    return {key: PurePath(str(value)).name if KEYS[key].facts.path else value for key, value in flat.items()}


def filled(config: RunConfig, found: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Return those of ``found`` whose keys are still ``"auto"``."""
    flat = config.to_run_config()
    return {key: value for key, value in found.items() if flat[key] == AUTO}


def published_settings(config: RunConfig, found: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Return what decides the results of a run, without keys that do not act or say nothing.

    Args:
        config: the run's, strategy and recipe resolved.
        found: what ``"auto"`` became when the images were known.
    """
    flat = config.to_run_config() | filled(config, found)
    acting = _acting(config, flat)
    return without_paths({key: value for key, value in flat.items() if key in acting and value not in (AUTO, "")})


def command_of(config: RunConfig) -> str:
    """Return the command that makes the same run, with every key that somebody chose."""
    flat = without_paths(config.to_run_config())
    words = ["fedsynth", "run"]
    if config.data.dataset == REAL_SILOS:
        words += ["--superlink", "LINK"]
    for key, value in flat.items():
        chosen = value != KEYS[key].default and key not in config.resolved
        if KEYS[key].facts.affects != "execution" and (chosen or key in ("strategy", "seed")):
            words.append(f"--{key}={str(value).lower() if isinstance(value, bool) else value}")
    return shlex.join(words)


def _acting(config: RunConfig, flat: Mapping[str, Scalar]) -> set[str]:
    """Return the keys that have an effect on results or measures beside the others."""
    settings = SETTINGS.get(config.run.strategy, StrategySettings)
    defaults = settings.defaults(flat) | shared_defaults(flat)
    values = {**flat, **{key: default for key, default in defaults.items() if flat[key] == AUTO}}
    known = [key for key in KEYS.values() if not (key.section == "strategy_keys" and is_plugin(config.run.strategy))]
    return {key.name for key in known if key.facts.affects != "execution" and not key.why_idle(flat[key.name], values)}
