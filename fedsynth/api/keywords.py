"""Configuration keys as programs give them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsynth.config import RunConfig, Scalar


def flat(settings: RunConfig | Mapping[str, Any]) -> dict[str, Scalar]:
    """Return settings by kebab-case key, as a TOML file would hold them."""
    if isinstance(settings, RunConfig):
        return settings.to_run_config()
    return {name.replace("_", "-"): _scalar(value) for name, value in settings.items()}


def _scalar(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    if callable(value):
        return f"{value.__module__}:{value.__qualname__}"
    return value
