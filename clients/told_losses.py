"""Losses of a silo's own model as a real silo tells them: means over many images, with three digits.

The server knows the first weights of the network, the noise and the order of the images, which follow from a seed that
it chose. So the exact loss of a step of one image is an equation in that image's pixels, and every other seed is one
more, until they can be solved.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

DIGITS = 3


def told_loss(losses: Sequence[float], least_steps: int) -> float:
    """Return the mean of the last whole stretch of ``least_steps`` of the steps so far.

    Stretches begin at step 0 and do not overlap, so that two answers do not differ by the loss of one step.

    Args:
        losses: of every step, ``least_steps`` at least.
        least_steps: steps that draw as many images as must be behind a loss.
    """
    end = len(losses) - len(losses) % least_steps
    return rounded_mean(losses[end - least_steps : end])


def told_curve(history: dict[str, Any], least_steps: int) -> dict[str, Any]:
    """Return a loss curve (``steps``, ``losses``), each loss a mean over ``least_steps`` steps or more.

    Args:
        history: the curve in equal stretches of steps, the last of which may be shorter.
        least_steps: as of :func:`told_loss`, the length of the curve at most.
    """
    steps, losses = history["steps"], history["losses"]
    width = int(steps[0])
    points = -(-least_steps // width)
    if len(steps) > 1 and steps[-1] - steps[-2] < min(width, least_steps):
        steps, losses = steps[:-1], losses[:-1]
    points = min(points, len(losses))
    firsts = range(0, len(losses) - len(losses) % points, points)
    ends = [steps[first + points - 1] for first in firsts]
    means = [rounded_mean(losses[first : first + points]) for first in firsts]
    # What is left over is in no mean.
    return {"steps": [*ends[:-1], history["steps"][-1]], "losses": means}


def rounded_mean(losses: Sequence[float]) -> float:
    """Return a mean with three digits."""
    return float(f"{sum(losses) / len(losses):.{DIGITS}g}")
