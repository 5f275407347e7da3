"""Local: every silo alone, the reference that cooperation must beat."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from flwr.app import ArrayRecord, MetricRecord

from fedsynth.config import RunConfig
from fedsynth.errors import RunError
from fedsynth.messages import SampleAnswer, transport
from fedsynth.seeding import make_generator
from strategies.base import Outcome, SynthesisStrategy, Task
from strategies.conversation.ask import Question
from strategies.conversation.census import Member
from strategies.conversation.exchange import Exchange
from strategies.own_models.local_training import train_local_models
from strategies.own_models.shares import collect_images, sample_questions


class Local(SynthesisStrategy):
    """Every silo draws a whole set from its own model: K sets of N images, of the classes that the silo holds.

    A silo whose model or set fails (``min-replies`` allows it) has no set.
    """

    how = "each silo trained its own diffusion model and drew a set of its own from it; nothing was shared"
    num_rounds = 1

    def prepare(self, task: Task, exchange: Exchange) -> ArrayRecord:
        """Have the silos train their models."""
        ready = sorted(train_local_models(exchange, task))
        labels = [draw_labels_of(task.census.members[k], task.config) for k in ready]
        owners = torch.tensor(ready).repeat_interleave(task.config.sampling.num_samples)
        return transport.encode_tensors({"labels": torch.cat(labels), "owners": owners})

    def questions(self, server_round: int, arrays: ArrayRecord) -> list[Question[SampleAnswer]]:
        """Ask every silo for its set, from the noise that every method of the seed starts from."""
        task = self._begun()
        self._labels = transport.decode(arrays["labels"])
        self._owners = transport.decode(arrays["owners"])
        num_samples = task.config.sampling.num_samples
        numbers = torch.arange(num_samples).repeat(len(self._owners) // num_samples)
        return sample_questions(task, self._owners, self._labels, numbers)

    def aggregate(
        self, server_round: int, answers: Iterator[tuple[int, SampleAnswer]]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Gather the sets."""
        shares = collect_images(answers, self._begun(), self._owners)
        drawn = shares.drawn
        tensors = {"images": shares.images[drawn], "labels": self._labels[drawn], "owners": self._owners[drawn]}
        silos = len(torch.unique(tensors["owners"]))
        return transport.encode_tensors(tensors), MetricRecord({"silos": silos, "client-seconds": shares.seconds})

    def finish(self, task: Task, arrays: ArrayRecord) -> Outcome:
        """Return the sets one after the other."""
        curves = {name: member.curve for name, member in zip(task.shown_names, task.census, strict=True)}
        images, labels, owners = (transport.decode(arrays[name]).numpy() for name in ("images", "labels", "owners"))
        absent = [name for k, name in enumerate(task.shown_names) if not (owners == k).any()]
        notes = (f"without sets of {', '.join(absent)}",) if absent else ()
        return Outcome(images, labels, curves=curves, owners=owners, notes=notes)

    def _begun(self) -> Task:
        if self._task is None:
            raise RunError("a round needs the silos' models: call begin first")
        return self._task


def draw_labels_of(member: Member, config: RunConfig) -> torch.Tensor:
    """Return the classes of one silo's set, int64 (N,): equal shares of those it holds, or its own shares."""
    counts = torch.tensor(member.label_counts)
    num_samples = config.sampling.num_samples
    if config.sampling.labels == "balanced":
        held = torch.nonzero(counts).squeeze(1)
        return held[torch.arange(num_samples) % len(held)]
    generator = make_generator(config.run.seed, "labels", member.name)
    return torch.multinomial(counts.double(), num_samples, replacement=True, generator=generator)
