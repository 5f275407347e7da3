"""The rules of strategies by their names, for whoever must compute a round without the strategy itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from fedsynth.averaging.coordinatewise import mean_around_median, median, trimmed_mean
from fedsynth.averaging.krum import (
    BULYAN_PER_MALICIOUS,
    KRUM_PER_MALICIOUS,
    bulyan_select,
    krum_select,
    squared_distances,
)
from fedsynth.averaging.layers import Layers, weighted_mean
from fedsynth.averaging.server_steps import Moments, adagrad_step, adam_step, momentum_step, stepped, yogi_step
from fedsynth.config.methods import KrumSettings, MultiKrumSettings, StrategySettings, TrimmedSettings

MOMENT = "/"
"""Stands between a moment and its layer in the name of an array of a state."""


@dataclass(frozen=True)
class Updates:
    """What a rule combines.

    Attributes:
        models: what the silos sent, K >= 1, emptied.
        images: behind each.
        base: the weights that they started from; read by rules of :data:`FROM_BASE` alone.
        state: what the rule carried on from the round before; empty before the first, and where it carries nothing.
    """

    models: Sequence[Layers]
    images: Sequence[int]
    base: Layers
    state: Layers


class Combined(NamedTuple):
    """What a rule makes of a round.

    Attributes:
        model: the weights after it.
        state: what the rule carries on, float64 under ``<moment>/<layer>``; empty: nothing.
    """

    model: Layers
    state: Layers


Rule = Callable[[Updates, Any], Combined]
"""From updates and the strategy's own settings to what they make."""


def cut_of(beta: float, models: int) -> int:
    """Return how many of the smallest and of the largest values a trimmed mean leaves out."""
    # 0.29 * 100 is 28.999999999999996.
    return math.floor(beta * models + 1e-9)


def updates_needed(strategy: str, settings: StrategySettings) -> int:
    """Return how many updates a strategy's rule can combine at least."""
    if not isinstance(settings, KrumSettings):
        return 1
    malicious = settings.num_malicious_nodes
    selected = settings.num_nodes_to_select if isinstance(settings, MultiKrumSettings) else 0
    per_malicious = BULYAN_PER_MALICIOUS if strategy == "bulyan" else KRUM_PER_MALICIOUS
    return max(per_malicious * malicious + 3, selected + malicious)


def _mean(updates: Updates, settings: StrategySettings) -> Combined:
    return Combined(weighted_mean(updates.models, updates.images), {})


def _median(updates: Updates, settings: StrategySettings) -> Combined:
    return Combined(median(updates.models), {})


def _trimmed(updates: Updates, settings: TrimmedSettings) -> Combined:
    return Combined(trimmed_mean(updates.models, cut_of(settings.beta, len(updates.models))), {})


def _by_parts(updates: Updates, settings: StrategySettings) -> Combined:
    """Average every part of the network over the updates that hold it; what none holds stays as it was."""
    groups: dict[frozenset[str], list[int]] = {}
    for k, model in enumerate(updates.models):
        groups.setdefault(frozenset(model), []).append(k)
    combined = dict(updates.base)
    for group in groups.values():
        combined |= weighted_mean([updates.models[k] for k in group], [updates.images[k] for k in group])
    return Combined(combined, {})


def _krum(updates: Updates, settings: KrumSettings) -> Combined:
    return _plain_mean(updates, krum_select(squared_distances(updates.models), settings.num_malicious_nodes, 1))


def _multikrum(updates: Updates, settings: MultiKrumSettings) -> Combined:
    malicious = settings.num_malicious_nodes
    count = settings.num_nodes_to_select or len(updates.models) - malicious
    return _plain_mean(updates, krum_select(squared_distances(updates.models), malicious, count))


def _bulyan(updates: Updates, settings: KrumSettings) -> Combined:
    malicious = settings.num_malicious_nodes
    chosen = sorted(bulyan_select(squared_distances(updates.models), malicious))
    models = [updates.models[k] for k in chosen]
    return Combined(mean_around_median(models, len(models) - 2 * malicious), {})


def _plain_mean(updates: Updates, chosen: list[int]) -> Combined:
    return Combined(weighted_mean([updates.models[k] for k in sorted(chosen)], [1.0] * len(chosen)), {})


def _stepping(step: Callable[[str, torch.Tensor, Moments, Any], torch.Tensor]) -> Rule:
    def rule(updates: Updates, settings: StrategySettings) -> Combined:
        moments: Moments = {}
        for key, values in updates.state.items():
            which, _, name = key.partition(MOMENT)
            # A copy: the state may be asked for again, and lies where nobody may write.
            moments.setdefault(which, {})[name] = values.clone()
        model = stepped(
            updates.base,
            updates.models,
            updates.images,
            lambda name, delta: step(name, delta, moments, settings),
        )
        state = {f"{which}{MOMENT}{name}": values for which, of in moments.items() for name, values in of.items()}
        return Combined(model, state)

    return rule


CARRYING: Mapping[str, Rule] = {
    "fedavgm": _stepping(momentum_step),
    "fedadagrad": _stepping(adagrad_step),
    "fedadam": _stepping(adam_step),
    "fedyogi": _stepping(yogi_step),
}
"""Strategy -> its rule, where that carries something from round to round."""

FROM_BASE = (*CARRYING, "feddiffuse")
"""Strategies whose rule starts from the weights that were sent out."""

RULES: Mapping[str, Rule] = {
    "fedavg": _mean,
    "fedprox": _mean,
    "feddiffuse": _by_parts,
    "fedmedian": _median,
    "fedtrimmedavg": _trimmed,
    "krum": _krum,
    "multikrum": _multikrum,
    "bulyan": _bulyan,
    **CARRYING,
}
"""Strategy -> its rule. Those that train a network on the server are not among them: a training's bits depend on the
machine."""
