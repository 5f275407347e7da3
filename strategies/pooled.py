"""Pooled sampling: every silo draws its share from its own model, in one round.

The idea of FedDiff (WACV 2025). It has the target of cooperative inference, p* = Σ w_i p_i, and is the baseline that
cooperation must justify itself against.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from fedsynth import wire
from fedsynth.errors import RunError
from fedsynth.mixture import log_prior
from fedsynth.seeding import make_generator
from strategies.base import Outcome, SynthesisStrategy, Task
from strategies.census import Census, train_local_models
from strategies.replies import usable


class Pooled(SynthesisStrategy):
    """Each synthetic image comes from one silo, chosen with probability w_{i,y}.

    Args:
        prior: ``class``, ``size`` or ``uniform``, see :func:`fedsynth.mixture.log_prior`.
        sampler: how silos sample their models.
    """

    num_rounds = 1

    def __init__(self, *, prior: str = "class", sampler: str = "ddpm") -> None:
        self.prior, self.sampler = prior, sampler
        self._owners: torch.Tensor | None = None
        self._census: Census | None = None
        self._ttl: float | None = None

    def begin(self, task: Task, grid: Grid) -> ArrayRecord:
        """Train the silos' models and decide who draws which image."""
        train_local_models(grid, task.census, task.spec, task.config)
        self._census, self._ttl = task.census, task.config.exchange.reply_timeout
        weights = log_prior(self.prior, task.census.label_counts, task.labels).exp()
        generator = make_generator(task.config.run.seed, "owners")
        self._owners = torch.multinomial(weights.T, 1, generator=generator).squeeze(1)
        channels, height, width = task.spec.shape
        blank = torch.zeros((len(task.labels), height, width, channels), dtype=torch.uint8)
        return wire.encode_tensors({wire.IMAGES: blank, wire.LABELS: task.labels})

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask every silo for its share."""
        census, owners = self._ready()
        labels = wire.decode(arrays[wire.LABELS])
        self._images = wire.decode(arrays[wire.IMAGES])
        self._labels = labels
        messages = []
        for k, member in enumerate(census):
            numbers = torch.nonzero(owners == k).squeeze(1)
            if len(numbers):
                record = wire.encode_tensors({wire.LABELS: labels[numbers], wire.NUMBERS: numbers})
                messages.append(wire.request(member.node_id, wire.SAMPLE, dict(config), record, self._ttl))
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Put every silo's images in their places.

        Raises:
            RunError: a silo's share is missing or has another shape.
        """
        census, owners = self._ready()
        shares, seconds = len(torch.unique(owners)), 0.0
        for reply in usable(replies, shares):
            k = census.position(reply)
            images = wire.decode(reply.content.array_records[wire.ARRAYS][wire.IMAGES])
            numbers = torch.nonzero(owners.eq(-1 if k is None else k)).squeeze(1)
            if images.shape != (len(numbers), *self._images.shape[1:]) or images.dtype != torch.uint8:
                raise RunError(f"{wire.silo_key(reply)[1]}: unusable images {tuple(images.shape)} {images.dtype}")
            self._images[numbers] = images
            seconds += wire.number(reply.content.metric_records[wire.METRICS], "seconds", 0.0)
        arrays = wire.encode_tensors({wire.IMAGES: self._images, wire.LABELS: self._labels})
        return arrays, MetricRecord({"silos": shares, "client-seconds": seconds})

    def finish(self, task: Task, arrays: ArrayRecord) -> Outcome:
        """Return the images as they came."""
        curves = {member.name: member.curve for member in task.census}
        return Outcome(wire.decode(arrays[wire.IMAGES]).numpy(), task.labels.numpy(), curves=curves)

    def _ready(self) -> tuple[Census, torch.Tensor]:
        if self._census is None or self._owners is None:
            raise RunError("a pooled round needs the silos' label counts: call begin first")
        return self._census, self._owners
