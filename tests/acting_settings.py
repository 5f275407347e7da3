"""Settings that many tests share, for runs of any strategy and dataset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedsynth.config import idle_keys


def acting(shared: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``given``, and what of ``shared`` acts beside it, by key; keys may come in snake case."""
    of_all, of_one = ({key.replace("_", "-"): value for key, value in part.items()} for part in (shared, given))
    idle = idle_keys({**of_all, **of_one})
    return {**{key: value for key, value in of_all.items() if key not in idle}, **of_one}
