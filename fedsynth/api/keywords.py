"""Configuration keys as programs give them."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from fedsynth.config import RunConfig, Scalar
from fedsynth.errors import UserError

PLUGINS = ("strategy", "dataset", "sampler")
"""Keys that take a class or function."""


def flat(settings: RunConfig | Mapping[str, Any]) -> dict[str, Scalar]:
    """Return settings by kebab-case key, as a TOML file would hold them.

    Raises:
        UserError: a class or function that no other process could import, or what is no value of a key.
    """
    if isinstance(settings, RunConfig):
        return settings.to_run_config()
    found: dict[str, Scalar] = {}
    for name, value in settings.items():
        key = name.replace("_", "-")
        found[key] = _plugin_name(key, value) if callable(value) else _scalar(key, value)
    return found


def _scalar(key: str, value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        value = ",".join(map(str, value)) if all(isinstance(one, Real | str) for one in value) else object()
    if isinstance(value, bool | str):
        return value
    if isinstance(value, Real):  # of NumPy, too
        return int(value) if isinstance(value, Integral) else float(value)
    wanted = " or the class or function itself" if key in PLUGINS else ""
    raise UserError(f"{key}: an object of {type(value).__name__}: give a number, a text, true or false{wanted}")


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
