"""The server's side of a run whose silos answer in this process, up to its first round."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord

import clients.app
from fedsynth.api.in_process_grid import InProcessGrid
from fedsynth.config import RunConfig, Scalar
from fedsynth.data import Federation, load_federation
from strategies import build_strategy
from strategies.app import draw_labels
from strategies.base import Outcome, SynthesisStrategy, Task
from strategies.conversation.aggregators import meet_aggregators
from strategies.conversation.exchange import Exchange
from strategies.conversation.meeting import take_census
from strategies.run.rounds import Round, run_rounds


@dataclass
class InProcessRun:
    """A run whose silos have been counted and have their models.

    Attributes:
        strategy: what is run.
        task: the federation and the labels.
        exchange: the way to the silos.
        arrays: what the first round starts from.
    """

    strategy: SynthesisStrategy
    task: Task
    exchange: Exchange
    arrays: ArrayRecord

    def rounds(self, *observers: Callable[[Round], None]) -> ArrayRecord:
        """Run all rounds, with the observers called after each, and return the arrays after the last."""
        return run_rounds(self.strategy, self.exchange, self.arrays, observers)

    def outcome(self) -> Outcome:
        """Run all rounds and finish."""
        return self.strategy.finish(self.task, self.rounds())


def begin_run(
    settings: Mapping[str, Scalar],
    federation: Federation | None = None,
    silos: Callable[[dict[str, Scalar], int], InProcessGrid] | None = None,
    spool: Path | None = None,
) -> InProcessRun:
    """Count the silos and have the strategy begin.

    Args:
        settings: configuration keys that are not left at their defaults.
        federation: the silos' data, if loaded already.
        silos: makes them from the resolved settings and their number; None: the ClientApp as it is.
        spool: folder for what is too large for memory; None: there is none, and weights travel whole.
    """
    strategy, config = build_strategy(RunConfig.from_run_config(settings))
    known = federation or load_federation(config)
    make = silos or (lambda flat, number: InProcessGrid(clients.app.app, flat, number))
    exchange = Exchange(make(config.to_run_config(), config.num_nodes), config.exchange.reply_timeout)
    nodes = exchange.wait_for_nodes(config.num_nodes, config.exchange.node_timeout)
    aggregators = meet_aggregators(exchange, config) if config.num_aggregators else None
    others = {member.node_id for member in aggregators or ()}
    nodes = [node for node in nodes if node not in others]
    most, least = config.exchange.max_silo_images, int(config.settings.labels_everywhere)
    census = take_census(exchange, nodes, known.spec, most, least=least)
    task = Task(config, known.spec, census, draw_labels(config, census), known, spool=spool, aggregators=aggregators)
    return InProcessRun(strategy, task, exchange, strategy.begin(task, exchange))


def silos_with(node_config: Callable[[int], dict[str, Any]]) -> Callable[[dict[str, Scalar], int], InProcessGrid]:
    """Return what :func:`begin_run` makes silos with, whose own node config says more than their partition."""

    def make(flat: dict[str, Scalar], number: int) -> InProcessGrid:
        partitions = ({"partition-id": k, "num-partitions": number, **node_config(k)} for k in range(number))
        return InProcessGrid(clients.app.app, flat, number, node_configs=list(partitions))

    return make
