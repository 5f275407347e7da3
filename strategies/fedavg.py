"""FedAvg (McMahan et al. 2017, arXiv 1602.05629)."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, MetricRecordValues
from flwr.serverapp import Grid

from fedsynth import wire
from fedsynth.diffusion import initial_unet
from strategies.aggregation import Shapes, check_model, shapes, weighted_mean
from strategies.base import Outcome, SynthesisStrategy, Task
from strategies.global_model import draw_from_model
from strategies.replies import num_examples, seconds_worked, usable

logger = logging.getLogger("fedsynth")


class FedAvg(SynthesisStrategy):
    """Silos train the global model in turn; the server averages their weights, w ← Σ n_k w_k / Σ n_k.

    Raw weights travel and local optimisers start fresh each round; the server also keeps an exponential moving
    average over rounds. At the end it samples the global model.

    Args:
        num_rounds: rounds; each silo makes its share of ``train-steps`` optimiser steps a round.
        sampler: how the global model is sampled.
        sample_from: ``raw`` (the last average) or ``ema`` (the average over rounds).
        server_ema_decay: weight of the past in the average over rounds.
    """

    def __init__(
        self,
        *,
        num_rounds: int = 20,
        sampler: str = "ddpm",
        sample_from: str = "raw",
        server_ema_decay: float = 0.5,
    ) -> None:
        self.num_rounds, self.sampler = num_rounds, sampler
        self.sample_from, self.server_ema_decay = sample_from, server_ema_decay
        self._min_replies = 1
        self._nodes: list[int] | None = None
        self._ttl: float | None = None
        self._wire_dtype = "float32"
        self._shapes: Shapes | None = None
        self._average: dict[str, torch.Tensor] | None = None
        self._losses: list[tuple[int, float]] = []

    def begin(self, task: Task, grid: Grid) -> ArrayRecord:
        """Return the initial weights."""
        self._min_replies = task.min_replies
        self._nodes = [member.node_id for member in task.census]
        self._ttl, self._wire_dtype = task.config.exchange.reply_timeout, task.config.exchange.wire_dtype
        return wire.encode_tensors(initial_unet(task.config, task.spec).state_dict())

    def train_config(self, task: Task) -> ConfigRecord:
        """Add the optimiser steps of the whole run."""
        config = super().train_config(task)
        config["train-steps"] = task.config.training.train_steps
        return config

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the weights to every silo, with its optimiser steps of this round."""
        self._shapes = shapes(arrays)
        content = {**config, "server-round": server_round}
        if "train-steps" in config:
            total = int(wire.number(config, "train-steps"))
            content["steps"] = total * server_round // self.num_rounds - total * (server_round - 1) // self.num_rounds
        if self._wire_dtype != "float32":
            arrays = wire.encode_tensors(wire.decode_tensors(arrays), self._wire_dtype)
        nodes = self._nodes if self._nodes is not None else sorted(grid.get_node_ids())
        return [wire.request(node, wire.TRAIN, content, arrays, self._ttl) for node in nodes]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the weights of all usable answers, in the order of silos rather than of arrival.

        Answers that do not fit the model, or are not finite, are left out and named in the log.
        """
        updates = sorted(filter(self._fits, usable(replies, self._min_replies)), key=wire.silo_key)
        if not updates:
            return None, None
        counts = [num_examples(reply) for reply in updates]
        metrics = _mean_metrics(updates, counts)
        arrays = weighted_mean([wire.array_record(reply, wire.ARRAYS) for reply in updates], counts)
        self._follow(arrays)
        if "loss" in metrics:
            self._losses.append((server_round, wire.number(metrics, "loss")))
        return arrays, metrics

    def finish(self, task: Task, arrays: ArrayRecord) -> Outcome:
        """Sample the global model."""
        weights = self._average if self.sample_from == "ema" else None
        outcome = draw_from_model(task, weights or wire.decode_tensors(arrays))
        outcome.curves["mean over silos, by round"] = self._losses
        return outcome

    def _fits(self, reply: Message) -> bool:
        try:
            record = wire.array_record(reply, wire.ARRAYS)
            num_examples(reply)
            seconds_worked(reply)
            _loss(reply)
            check_model(record, shapes(record) if self._shapes is None else self._shapes)
        except ValueError as error:
            logger.warning("%s left out: %s", wire.silo_key(reply)[1], error)
            return False
        return True

    def _follow(self, arrays: ArrayRecord) -> None:
        """Update the average over rounds."""
        if self.sample_from != "ema":
            return
        current = wire.decode_tensors(arrays)
        if self._average is None:
            self._average = current
            return
        for name, value in self._average.items():
            if value.is_floating_point():
                value.lerp_(current[name], 1 - self.server_ema_decay)
            else:
                value.copy_(current[name])


def _mean_metrics(updates: list[Message], counts: list[int]) -> MetricRecord:
    losses = [loss for loss in map(_loss, updates) if loss is not None]
    mean: dict[str, MetricRecordValues] = {"num-examples": sum(counts)}
    if len(losses) == len(counts):
        mean["loss"] = sum(n * loss for n, loss in zip(counts, losses, strict=True)) / sum(counts)
    mean["client-seconds"] = sum(map(seconds_worked, updates))
    return MetricRecord(mean)


def _loss(reply: Message) -> float | None:
    record = wire.metrics(reply)
    return wire.number(record, "loss") if "loss" in record else None
