"""Ours against Flower's aggregation: ``python -m experiments.benchmarks.aggregation [--quick] [--output FOLDER]``.

Ten answers with all weights of the ``mnist`` and ``cifar10`` networks (11.7 M and 35.8 M float32 numbers) go through
``aggregate_train`` of our strategy and of Flower's of the same name, our checks of the answers included.

CPU time: of all threads, in one process, in turns, the median of the repeats after a first one that does not count.
Much of Flower's for Krum is the system's, for fresh memory, and varies from repeat to repeat. Extra memory: peak
resident set above a process that holds the answers, in percent of these; freed memory is given back at once, every
measurement has a fresh process (Linux only). Exits with 1 when a limit is passed.
"""

from __future__ import annotations

import argparse
import gc
import logging
import statistics
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp import strategy as flower
from flwr.supercore.task_identity import TaskIdentity

from experiments.benchmarks import resident
from experiments.benchmarks.common import in_fresh_process, machine_facts, publish
from fedsynth.diffusion import build_unet
from fedsynth.messages import TrainRequest, transport
from fedsynth.seeding import make_generator
from fedsynth.spec import ImageSpec
from strategies import STRATEGIES

NUM_SILOS = 10
NUM_EXAMPLES = 300
DRIFT = 1e-2

CHANNELS = {"mnist": 1, "cifar10": 3}
"""Of the images, by preset of the network."""


class Aggregator(Protocol):
    """What both sides have."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combine the answers of a round."""


@dataclass
class Rule:
    """One way to aggregate, and what is asked of ours.

    Attributes:
        flower: Flower's class.
        options: keyword arguments of both classes.
        speed_up: least CPU time of Flower's, as a multiple of ours.
        extra: largest extra memory of ours, in percent of the answers; None: any.
    """

    flower: type[Aggregator]
    options: dict[str, int]
    speed_up: float
    extra: float | None = None


RULES = {
    "fedavg": Rule(flower.FedAvg, {}, 1),
    "fedmedian": Rule(flower.FedMedian, {}, 5),
    "krum": Rule(flower.Krum, {"num_malicious_nodes": 2}, 3, 20),
    "multikrum": Rule(flower.MultiKrum, {"num_malicious_nodes": 2, "num_nodes_to_select": 8}, 3, 20),
}
"""By name in :data:`strategies.STRATEGIES`."""


@dataclass
class Cost:
    """What one side needs for one rule and network.

    Attributes:
        cpu: CPU seconds of each repeat.
        wall: wall-clock seconds of each repeat.
        extra: peak of the extra memory, in percent of the answers.
    """

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    extra: float = 0.0


def main() -> int:
    """Measure everything, print it as one table, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only the smaller network, once: shows that it works")
    parser.add_argument("--output", type=Path, help="folder for aggregation.md and aggregation.json")
    options = parser.parse_args()
    facts, networks = machine_facts(), ["mnist"] if options.quick else list(CHANNELS)
    measured = {network: _measure(network, 1 if options.quick else 5) for network in networks}
    rows = [_row(network, name, *costs) for network in networks for name, costs in measured[network].items()]
    details = {network: {n: list(map(asdict, c)) for n, c in costs.items()} for network, costs in measured.items()}
    publish("aggregation", facts, rows, details, options.output)
    return int(not all(_within(name, *costs) for by_rule in measured.values() for name, costs in by_rule.items()))


def _measure(network: str, repeats: int) -> dict[str, tuple[Cost, Cost]]:
    """Return ours and Flower's costs by rule."""
    costs = in_fresh_process(cpu_costs, network, repeats)
    for name, sides in costs.items():
        for cost, ours in zip(sides, (True, False), strict=True):
            cost.extra = in_fresh_process(extra_memory, network, name, ours)
    return costs


def cpu_costs(network: str, repeats: int) -> dict[str, tuple[Cost, Cost]]:
    """Time ours and Flower's, in turns, by rule; ``extra`` stays 0."""
    _prepare()
    weights = _weights(network)
    updates = [_update(weights, silo) for silo in range(NUM_SILOS)]
    costs = {name: (Cost(), Cost()) for name in RULES}
    for _ in range(1 + repeats):
        for name, (ours, flowers) in costs.items():
            _time(ours, name, True, weights, updates)
            _time(flowers, name, False, weights, updates)
    for cost in chain(*costs.values()):
        del cost.cpu[0], cost.wall[0]
    return costs


def _time(cost: Cost, name: str, ours: bool, weights: ArrayRecord, updates: list[ArrayRecord]) -> None:
    aggregator = _aggregator(name, ours, weights)
    # Both sides may empty the records; the arrays themselves stay as they are.
    replies = [_reply(silo, ArrayRecord(dict(update))) for silo, update in enumerate(updates)]
    gc.collect()
    cpu, wall = time.process_time(), time.perf_counter()
    aggregator.aggregate_train(1, replies)
    cost.wall.append(time.perf_counter() - wall)
    cost.cpu.append(time.process_time() - cpu)


def extra_memory(network: str, name: str, ours: bool) -> float:
    """Return the peak of the extra memory in percent of the answers; call it in a fresh process."""
    _prepare()
    resident.return_freed_memory()
    tiny = transport.encode_tensors({"layer": torch.zeros(NUM_SILOS)})
    # Everything is imported and set up.
    _aggregator(name, ours, tiny).aggregate_train(1, [_reply(silo, _update(tiny, silo)) for silo in range(NUM_SILOS)])
    weights = _weights(network)
    replies = [_reply(silo, _update(weights, silo)) for silo in range(NUM_SILOS)]
    size = sum(transport.payload_bytes(reply) for reply in replies)
    aggregator = _aggregator(name, ours, weights)
    baseline = resident.reset_peak()
    aggregator.aggregate_train(1, _handed_over(replies))
    return 100 * (resident.peak() - baseline) / size


def _handed_over(replies: list[Message]) -> Iterator[Message]:
    """Yield the answers without keeping them."""
    while replies:
        yield replies.pop(0)


def _prepare() -> None:
    # Flower sets these when it starts an app; a message cannot be built without them.
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    logging.getLogger("flwr").setLevel(logging.WARNING)


def _aggregator(name: str, ours: bool, weights: ArrayRecord) -> Aggregator:
    rule = RULES[name]
    if not ours:
        return rule.flower(**rule.options)
    strategy = STRATEGIES[name](**rule.options)
    list(strategy.configure_train(1, weights, ConfigRecord(), cast(Grid, _Nodes())))
    return strategy


class _Nodes:
    """As much of a grid as a strategy needs to send its weights."""

    def get_node_ids(self) -> list[int]:
        """All silos."""
        return list(range(1, NUM_SILOS + 1))


def _weights(network: str) -> ArrayRecord:
    spec = ImageSpec(CHANNELS[network], 32, tuple("abcdefghij"))
    return transport.encode_tensors(build_unet(network, spec, make_generator(0, "initial-weights")).state_dict())


def _update(weights: ArrayRecord, silo: int) -> ArrayRecord:
    generator = make_generator(0, "silo-drift", silo)
    layers = transport.decode_tensors(weights)
    return transport.encode_tensors(
        {name: layer.add_(torch.randn(layer.shape, generator=generator), alpha=DRIFT) for name, layer in layers.items()}
    )


def _reply(silo: int, update: ArrayRecord) -> Message:
    request = Message(RecordDict(), dst_node_id=silo + 1, message_type=TrainRequest.kind)
    metrics = MetricRecord({"num-examples": NUM_EXAMPLES, "loss": 0.1, "seconds": 1.0})
    # Not packed as on the wire, which Flower's own classes cannot read.
    content = RecordDict({"silo": ConfigRecord({"partition-id": silo}), "metrics": metrics, "arrays": update})
    return Message(content, reply_to=request)


def _speed_up(ours: Cost, flowers: Cost) -> float:
    return statistics.median(flowers.cpu) / statistics.median(ours.cpu)


def _within(name: str, ours: Cost, flowers: Cost) -> bool:
    rule = RULES[name]
    return _speed_up(ours, flowers) >= rule.speed_up and (rule.extra is None or ours.extra <= rule.extra)


def _row(network: str, name: str, ours: Cost, flowers: Cost) -> dict[str, str]:
    rule = RULES[name]
    row: dict[str, Any] = {"network": network, "rule": name}
    for title, cost in {"ours": ours, "Flower's": flowers}.items():
        row[f"{title}: CPU s"] = f"{statistics.median(cost.cpu):.2f}"
        row[f"{title}: wall s"] = f"{statistics.median(cost.wall):.2f}"
    row["CPU ratio"] = f"{_speed_up(ours, flowers):.1f}"
    row["asked"] = f">= {rule.speed_up:g}"
    row["ours: extra memory"] = f"{ours.extra:.1f} %"
    row["Flower's: extra memory"] = f"{flowers.extra:.1f} %"
    row["asked of ours"] = "any" if rule.extra is None else f"<= {rule.extra:g} %"
    return row


if __name__ == "__main__":
    sys.exit(main())
