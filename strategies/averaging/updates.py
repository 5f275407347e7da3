"""The silos' answers to a training round, once they have been checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from flwr.app import ArrayRecord, MetricRecord, MetricRecordValues


@dataclass
class Update:
    """One silo's usable answer.

    Attributes:
        silo: its index in the census: updates are combined in this order.
        name: its name.
        record: the weights it sends.
        num_examples: images behind them.
        loss: mean training loss of the round, if it reports one.
        seconds: time it worked.
    """

    silo: int
    name: str
    record: ArrayRecord
    num_examples: int
    loss: float | None = None
    seconds: float = 0.0


def mean_metrics(updates: Sequence[Update]) -> MetricRecord:
    """Return images in all, the loss weighted by images, and how many silos answered."""
    metrics: dict[str, MetricRecordValues] = {
        "num-examples": sum(update.num_examples for update in updates),
        "silos": len(updates),
    }
    losses = [(update.loss, update.num_examples) for update in updates if update.loss is not None]
    if losses:
        # fsum: how sum() rounds depends on the version of Python.
        metrics["loss"] = math.fsum(loss * n for loss, n in losses) / sum(n for _, n in losses)
    return MetricRecord(metrics)
