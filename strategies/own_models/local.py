"""Local: every silo alone, the reference that cooperation must beat."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from fedsynth.config import RunConfig
from fedsynth.errors import RunError
from fedsynth.messages import wire
from fedsynth.seeding import make_generator
from strategies.base import Outcome, SynthesisStrategy, Task
from strategies.conversation.census import Member
from strategies.own_models.local_training import train_local_models
from strategies.own_models.shares import collect_images, sample_requests


class Local(SynthesisStrategy):
    """Every silo draws a whole set from its own model: K sets of N images, of the classes that the silo holds."""

    how = "each silo trained its own diffusion model and drew a set of its own from it; nothing was shared"
    num_rounds = 1

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._task: Task | None = None

    def begin(self, task: Task, grid: Grid) -> ArrayRecord:
        """Have the silos train their models."""
        self._task = task
        train_local_models(grid, task.census, task.spec, task.config)
        labels = [draw_labels_of(member, task.config) for member in task.census]
        return wire.encode_tensors({wire.LABELS: torch.cat(labels)})

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask every silo for its set, from the noise that every method of the seed starts from."""
        task = self._begun()
        self._labels = wire.decode(arrays[wire.LABELS])
        numbers = torch.arange(task.config.sampling.num_samples).repeat(len(task.census))
        return sample_requests(task, self._owners(task), self._labels, numbers, dict(config))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Gather the sets.

        Raises:
            RunError: a silo's set is missing or unusable.
        """
        task = self._begun()
        images, seconds = collect_images(replies, task, self._owners(task))
        arrays = wire.encode_tensors({wire.IMAGES: images, wire.LABELS: self._labels})
        return arrays, MetricRecord({"silos": len(task.census), "client-seconds": seconds})

    def finish(self, task: Task, arrays: ArrayRecord) -> Outcome:
        """Return the sets one after the other."""
        curves = {member.name: member.curve for member in task.census}
        images, labels = wire.decode(arrays[wire.IMAGES]).numpy(), wire.decode(arrays[wire.LABELS]).numpy()
        return Outcome(images, labels, curves=curves, owners=self._owners(task).numpy())

    def _owners(self, task: Task) -> torch.Tensor:
        return torch.arange(len(task.census)).repeat_interleave(task.config.sampling.num_samples)

    def _begun(self) -> Task:
        if self._task is None:
            raise RunError("a round needs the silos' models: call begin first")
        return self._task


def draw_labels_of(member: Member, config: RunConfig) -> torch.Tensor:
    """Return the classes of one silo's set, int64 (N,): equal shares of those it holds, or its own shares."""
    counts, num_samples = torch.tensor(member.label_counts), config.sampling.num_samples
    if config.sampling.labels == "balanced":
        held = torch.nonzero(counts).squeeze(1)
        return held[torch.arange(num_samples) % len(held)]
    generator = make_generator(config.run.seed, "labels", member.name)
    return torch.multinomial(counts.double(), num_samples, replacement=True, generator=generator)
