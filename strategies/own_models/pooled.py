"""Pooled sampling: every silo draws its share from its own model, in one round.

The idea of FedDiff (WACV 2025). It has the target of cooperative inference, p* = Σ w_i p_i, and is the baseline that
cooperation must justify itself against.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from fedsynth.config.methods import OwnModelsSettings
from fedsynth.errors import RunError
from fedsynth.messages import wire
from strategies.base import Outcome, SynthesisStrategy, Task
from strategies.own_models.local_training import train_local_models
from strategies.own_models.shares import collect_images, draw_owners, sample_requests


class Pooled(SynthesisStrategy):
    """Each synthetic image comes from one silo, chosen with probability w_{i,y}."""

    how = "each silo trained its own diffusion model and drew its share of the images from it"
    num_rounds = 1

    Settings = OwnModelsSettings
    settings: OwnModelsSettings

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._task: Task | None = None
        self._owners = torch.empty(0, dtype=torch.int64)

    def begin(self, task: Task, grid: Grid) -> ArrayRecord:
        """Decide who draws which image and have the silos train their models.

        Raises:
            UserError: a class that no silo holds.
        """
        self._task, self._owners = task, draw_owners(task, self.settings.prior)
        train_local_models(grid, task.census, task.spec, task.config)
        return wire.encode_tensors({wire.LABELS: task.labels})

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask every silo for its share."""
        task = self._begun()
        return sample_requests(task, self._owners, task.labels, torch.arange(len(task.labels)), dict(config))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Put every silo's images in their places.

        Raises:
            RunError: a silo's share is missing or unusable.
        """
        task = self._begun()
        images, seconds = collect_images(replies, task, self._owners)
        arrays = wire.encode_tensors({wire.IMAGES: images, wire.LABELS: task.labels})
        return arrays, MetricRecord({"silos": len(torch.unique(self._owners)), "client-seconds": seconds})

    def finish(self, task: Task, arrays: ArrayRecord) -> Outcome:
        """Return the images as they came."""
        curves = {member.name: member.curve for member in task.census}
        return Outcome(wire.decode(arrays[wire.IMAGES]).numpy(), task.labels.numpy(), curves=curves)

    def _begun(self) -> Task:
        if self._task is None:
            raise RunError("a pooled round needs the silos' label counts: call begin first")
        return self._task
