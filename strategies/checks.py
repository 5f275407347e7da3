"""Checks of hyper-parameters."""

from __future__ import annotations

import math
from collections.abc import Collection

from fedsynth.diffusion import SAMPLERS
from fedsynth.errors import UserError, unknown_choice
from fedsynth.plugins import is_plugin, load_plugin


def in_range(
    key: str, value: float, low: float, high: float = math.inf, low_open: bool = False, high_open: bool = False
) -> float:
    """Return ``value`` if it is finite and lies between the bounds.

    Raises:
        UserError: it does not.
    """
    above = value > low if low_open else value >= low
    below = value < high if high_open else value <= high
    if math.isfinite(value) and above and below:
        return value
    left = f"{'>' if low_open else '>='} {low:g}"
    right = "" if high == math.inf else f" and {'<' if high_open else '<='} {high:g}"
    raise UserError(f"{key} = {value}: must be {left}{right}")


def known_sampler(sampler: str, *more: str) -> str:
    """Return ``sampler`` if it is one of ours, one of ``more``, or a user's own that can be imported.

    Raises:
        UserError: it is not.
    """
    if is_plugin(sampler):
        load_plugin("sampler", sampler)
        return sampler
    return one_of("sampler", sampler, (*SAMPLERS, *more))


def one_of(key: str, value: str, choices: Collection[str]) -> str:
    """Return ``value`` if it is one of ``choices``.

    Raises:
        UserError: it is not.
    """
    if value not in choices:
        raise unknown_choice(key, value, choices)
    return value
