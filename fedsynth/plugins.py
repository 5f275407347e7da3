"""Strategies, datasets and samplers of users: a configuration names them as ``module:name``."""

from __future__ import annotations

import importlib
from typing import Any

from fedsynth.errors import UserError, did_you_mean

FAMILIES = ("medmnist", "hf")
"""Built-in datasets whose names go on after a colon: no module of this name can hold a plug-in."""


def is_plugin(name: str) -> bool:
    """Whether a name of the configuration is a plug-in's ``module:name`` rather than a built-in name."""
    return ":" in name and family(name) == name


def family(name: str) -> str:
    """Return ``medmnist`` of ``medmnist:bloodmnist``, for each of :data:`FAMILIES`; every other name as it is."""
    first = name.partition(":")[0]
    return first if first in FAMILIES else name


def load_plugin(key: str, name: str) -> Any:
    """Import what a user wrote.

    Every process of a run imports it: the module must be installed beside fedsynth, or lie on ``PYTHONPATH``.

    Args:
        key: configuration key, for errors.
        name: ``module:name``.

    Raises:
        UserError: there is no such module, or nothing of that name in it.
    """
    module, _, attribute = name.partition(":")
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"{key} = '{name}': cannot import '{module}' ({error}){did_you_mean(module, FAMILIES)}: install it beside"
            " fedsynth, or put its folder on PYTHONPATH"
        ) from error
    if not hasattr(found, attribute):
        raise UserError(f"{key} = '{name}': '{module}' has no '{attribute}'{did_you_mean(attribute, vars(found))}")
    return getattr(found, attribute)
