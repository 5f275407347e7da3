"""The rules of the averaging strategies by name, for whoever must compute a round without the strategy itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from fedsynth.averaging.coordinatewise import median, trimmed_mean
from fedsynth.averaging.layers import Layers, weighted_mean
from fedsynth.config.methods import StrategySettings, TrimmedSettings

Rule = Callable[[Sequence[Layers], Sequence[int], StrategySettings], Layers]
"""From models, emptied, the images behind each, and the strategy's settings to the combined model."""


def cut_of(beta: float, models: int) -> int:
    """Return how many of the smallest and of the largest values a trimmed mean leaves out."""
    # 0.29 * 100 is 28.999999999999996.
    return math.floor(beta * models + 1e-9)


def _mean(models: Sequence[Layers], images: Sequence[int], settings: StrategySettings) -> Layers:
    return weighted_mean(models, images)


def _median(models: Sequence[Layers], images: Sequence[int], settings: StrategySettings) -> Layers:
    return median(models)


def _trimmed(models: Sequence[Layers], images: Sequence[int], settings: StrategySettings) -> Layers:
    assert isinstance(settings, TrimmedSettings)
    return trimmed_mean(models, cut_of(settings.beta, len(models)))


RULES: Mapping[str, Rule] = {"fedavg": _mean, "fedprox": _mean, "fedmedian": _median, "fedtrimmedavg": _trimmed}
"""Strategy -> its rule. Those whose rule carries something from round to round, or chooses by distances whose last bits
depend on the processor, are not among them."""
