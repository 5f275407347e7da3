"""Configuration keys as programs give them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsynth.config import RunConfig, Scalar
from fedsynth.errors import UserError


def flat(settings: RunConfig | Mapping[str, Any]) -> dict[str, Scalar]:
    """Return settings by kebab-case key, as a TOML file would hold them.

    Raises:
        UserError: a class or function that no other process could import.
    """
    if isinstance(settings, RunConfig):
        return settings.to_run_config()
    found: dict[str, Scalar] = {}
    for name, value in settings.items():
        key = name.replace("_", "-")
        found[key] = _plugin_name(key, value) if callable(value) else _scalar(value)
    return found


def _scalar(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return value


def _plugin_name(key: str, value: Any) -> str:
    """Return the ``module:name`` by which every process of a run imports a class or function."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
    if not module or not name.isidentifier():
        what = "a lambda" if "<lambda>" in name else f"'{name}'" if name else f"an object of {type(value).__name__}"
        raise UserError(
            f"{key}: {what} cannot be imported by name, as the processes of a run do: define it with 'def' or 'class'"
            " at the top of a module"
        )
    return f"{module}:{name}"
