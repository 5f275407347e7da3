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
from strategies.replies import malformed_named, seconds_worked, usable


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
        """Decide who draws which image and have the silos train their models.

        Raises:
            UserError: a class that no silo holds.
        """
        self._census, self._ttl = task.census, task.config.exchange.reply_timeout
        weights = log_prior(self.prior, task.census.label_counts, task.labels).exp()
        generator = make_generator(task.config.run.seed, "owners")
        self._owners = torch.multinomial(weights.T, 1, generator=generator).squeeze(1)
        train_local_models(grid, task.census, task.spec, task.config)
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
            RunError: a silo's share is missing or unusable.
        """
        census, owners = self._ready()
        shares, seconds = len(torch.unique(owners)), 0.0
        for reply in usable(replies, shares):
            k = census.position(reply)
            numbers = torch.nonzero(owners.eq(-1 if k is None else k)).squeeze(1)
            with malformed_named(reply):
                self._images[numbers] = _images(reply, (len(numbers), *self._images.shape[1:]))
                seconds += seconds_worked(reply)
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


def _images(reply: Message, shape: tuple[int, ...]) -> torch.Tensor:
    images = wire.decode(wire.array_record(reply, wire.ARRAYS)[wire.IMAGES])
    if images.shape != shape or images.dtype != torch.uint8:
        raise ValueError(f"images are {images.dtype} {tuple(images.shape)}, not uint8 {shape}")
    return images
