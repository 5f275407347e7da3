"""Who trains in a round: the same draw at the server and at whoever checks it."""

from __future__ import annotations

import math

import torch

from fedsynth.seeding import make_generator


def num_participants(available: int, fraction: float, least: int) -> int:
    """Return how many of ``available`` silos train in a round: a share, rounded down, or ``least`` if that is more."""
    # 0.3 * 10 is 3.0000000000000004 or 2.9999999999999996, depending on the digits.
    return min(available, max(math.floor(fraction * available + 1e-9), least))


def participants(seed: int, server_round: int, available: int, count: int) -> list[int]:
    """Draw the silos of a round, sorted: by index, since node ids change from run to run."""
    if count == available:
        return list(range(available))
    generator = make_generator(seed, "participants", server_round)
    drawn: list[int] = torch.randperm(available, generator=generator)[:count].tolist()
    return sorted(drawn)
