"""How long a round waits for silos, where there are many rounds: one that is gone must not cost an hour in each."""

from __future__ import annotations

from fedsynth.config import AUTO
from fedsynth.config.run import Exchange

TIMEOUT_FACTOR = 10
"""A round waits for this multiple of the slowest answer so far."""
LEAST_TIMEOUT = 60.0
"""Seconds that it waits at least."""


def round_timeout(keys: Exchange, slowest: float) -> float | None:
    """Return seconds to wait in a round; None, for ``reply-timeout``, until it is known how long silos take.

    Args:
        keys: of the run.
        slowest: seconds that the slowest answer so far took; 0: none yet.
    """
    if keys.round_timeout != AUTO:
        return keys.round_timeout
    return max(LEAST_TIMEOUT, TIMEOUT_FACTOR * slowest) if slowest else None
