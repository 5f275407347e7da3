"""What the silos' answers to a training round hold, once they have been checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from flwr.app import ArrayRecord, Message, MetricRecord, MetricRecordValues

from fedsynth.messages import wire
from strategies.averaging.aggregation import Shapes, check_model, shapes
from strategies.conversation.replies import num_examples, seconds_worked


@dataclass
class Update:
    """One silo's sound answer.

    Attributes:
        node_id: who gave it.
        order: sort key and name of the silo, the same in every run.
        record: the weights it sends.
        num_examples: images behind them.
        loss: mean training loss of the round, if it says one.
        seconds: time it worked.
    """

    node_id: int
    order: tuple[int, str]
    record: ArrayRecord
    num_examples: int
    loss: float | None
    seconds: float

    @property
    def name(self) -> str:
        """Name of the silo."""
        return self.order[1]


def read_update(reply: Message, expected: Shapes | None, max_silo_images: int) -> Update:
    """Check and read one answer.

    Args:
        reply: an answer that is no error.
        expected: the layers it must hold; None: whatever it holds.
        max_silo_images: largest ``num-examples`` that is believed.

    Raises:
        ValueError: says what cannot be used: names, shapes, kinds or values of the weights, or a number.
    """
    record = wire.array_record(reply, wire.ARRAYS)
    examples, seconds, loss = num_examples(reply, max_silo_images), seconds_worked(reply), _loss(reply)
    check_model(record, shapes(record) if expected is None else expected)
    return Update(reply.metadata.src_node_id, wire.silo_key(reply), record, examples, loss, seconds)


def mean_metrics(updates: Sequence[Update]) -> MetricRecord:
    """Sum up what the silos say: images in all, their loss weighted by images, how many answered."""
    total = sum(update.num_examples for update in updates)
    metrics: dict[str, MetricRecordValues] = {"num-examples": total, "silos": len(updates)}
    saying = [(update.loss, update.num_examples) for update in updates if update.loss is not None]
    if saying:
        metrics["loss"] = sum(loss * n for loss, n in saying) / sum(n for _, n in saying)
    return MetricRecord(metrics)


def _loss(reply: Message) -> float | None:
    record = wire.metrics(reply)
    if "loss" not in record:
        return None
    loss = wire.number(record, "loss")
    if not math.isfinite(loss):
        raise ValueError(f"loss = {loss}: must be finite")
    return loss
