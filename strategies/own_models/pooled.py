"""Pooled sampling: every silo draws its share from its own model, in one round.

The idea of FedDiff (WACV 2025). It has the target of cooperative inference, p* = Σ w_i p_i, and is the baseline that
cooperation must justify itself against.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from flwr.app import ArrayRecord, MetricRecord

from fedsynth.config.methods import OwnModelsSettings
from fedsynth.errors import RunError
from fedsynth.messages import SampleAnswer, transport
from strategies.base import Outcome, SynthesisStrategy, Task
from strategies.conversation.ask import Question
from strategies.conversation.exchange import Exchange
from strategies.own_models.local_training import train_local_models
from strategies.own_models.shares import collect_images, draw_owners, sample_questions


class Pooled(SynthesisStrategy):
    """Each synthetic image comes from one silo, chosen with probability w_{i,y}.

    A silo whose model fails (``min-replies`` allows it) draws nothing: other holders of its classes draw its images. If
    its images fail to come, the set is smaller, and its card says so.
    """

    how = "each silo trained its own diffusion model and drew its share of the images from it"
    num_rounds = 1

    Settings = OwnModelsSettings
    settings: OwnModelsSettings

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._owners = torch.empty(0, dtype=torch.int64)
        self._notes: tuple[str, ...] = ()

    def prepare(self, task: Task, exchange: Exchange) -> ArrayRecord:
        """Have the silos train their models, and decide who draws which image.

        Raises:
            UserError: a class that no silo holds.
        """
        draw_owners(task, self.settings.prior)  # refuses a class without a holder before anyone trains
        ready = train_local_models(exchange, task)
        able = torch.tensor([k in ready for k in range(len(task.census))])
        self._owners = draw_owners(task, self.settings.prior, able)
        return transport.encode_tensors({"labels": task.labels})

    def questions(self, server_round: int, arrays: ArrayRecord) -> list[Question[SampleAnswer]]:
        """Ask every silo for its share."""
        task = self._begun()
        return sample_questions(task, self._owners, task.labels, torch.arange(len(task.labels)))

    def aggregate(
        self, server_round: int, answers: Iterator[tuple[int, SampleAnswer]]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Put every silo's images in their places."""
        task = self._begun()
        shares = collect_images(answers, task, self._owners)
        self._notes = shares.notes
        arrays = transport.encode_tensors({"images": shares.images[shares.drawn], "labels": task.labels[shares.drawn]})
        silos = len(torch.unique(self._owners[shares.drawn]))
        return arrays, MetricRecord({"silos": silos, "client-seconds": shares.seconds})

    def finish(self, task: Task, arrays: ArrayRecord) -> Outcome:
        """Return the images as they came."""
        curves = {name: member.curve for name, member in zip(task.shown_names, task.census, strict=True)}
        images = transport.decode(arrays["images"]).numpy()
        return Outcome(images, transport.decode(arrays["labels"]).numpy(), curves=curves, notes=self._notes)

    def state_dict(self) -> dict[str, Any]:
        """Return whose images are missing."""
        return {"notes": list(self._notes)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self._notes = tuple(state.get("notes", ()))

    def _begun(self) -> Task:
        if self._task is None:
            raise RunError("a pooled round needs the silos' label counts: call begin first")
        return self._task
