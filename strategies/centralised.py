"""Centralised training, the reference that no federation has: one model on the union of the silos' images."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Message, MetricRecord
from numpy.typing import NDArray

from fedsynth.config.methods import CentralisedSettings
from fedsynth.diffusion import EncodedImages, TrainingState, codec_of, loss_curve, train
from fedsynth.errors import RunError, UserError
from fedsynth.messages import Answer, transport
from fedsynth.progress import Progress
from strategies.base import Outcome, SynthesisStrategy, Task
from strategies.conversation.ask import Question
from strategies.conversation.exchange import Exchange
from strategies.global_model import draw_from_model, new_training, preview_of_model

logger = logging.getLogger("fedsynth")


class Centralised(SynthesisStrategy):
    """Trains on the server, in a simulation only, for as many steps as all silos together."""

    how = "one diffusion model was trained on the union of the silos' images, a reference no federation has"

    Settings = CentralisedSettings
    settings: CentralisedSettings

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.num_rounds = self.settings.num_rounds
        self._state: TrainingState | None = None

    def prepare(self, task: Task, exchange: Exchange) -> ArrayRecord:
        """Gather the training images of all silos.

        Raises:
            UserError: the silos are real.
        """
        if task.federation is None:
            raise UserError("strategy = 'centralised' works in simulation only: real silos do not show their images")
        union = task.federation.union(task.config)
        codec = codec_of(task.config, task.spec)
        self._images = EncodedImages(union.images, codec, task.config.training.augmentations())
        self._labels = torch.from_numpy(union.labels)
        self._steps = task.config.train_steps * len(task.census)
        self._state = new_training(task, "centralised-training", self._steps)
        self._progress = self._new_progress(0)
        return transport.encode_tensors(self._state.unet.state_dict())

    def questions(self, server_round: int, arrays: ArrayRecord) -> list[Question[Answer]]:
        """Ask nothing."""
        return []

    def aggregate(
        self, server_round: int, answers: Iterator[tuple[int, Answer]]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Train one slice."""
        if self._task is None or self._state is None:
            raise RunError("centralised training needs the silos' images: call begin first")
        config = self._task.config
        share = self._steps * server_round // self.num_rounds - self._steps * (server_round - 1) // self.num_rounds
        goal = self._state.steps + share
        losses = train(
            self._state,
            self._images,
            self._labels,
            config.training,
            goal,
            on_step=lambda done, loss: self._progress.update(done, loss=loss),
        )
        loss = sum(losses) / len(losses)
        metrics = MetricRecord({"loss": loss, "steps": goal, "server-steps": len(losses)})
        return transport.encode_tensors(self._state.unet.state_dict()), metrics

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Train one slice: there is nothing to ask first."""
        return self.aggregate(server_round, iter(()))

    def preview(self, task: Task, arrays: ArrayRecord, rows: torch.Tensor) -> NDArray[np.uint8]:
        """Return what the model draws after the round."""
        return preview_of_model(task, transport.decode_tensors(arrays), rows)

    def finish(self, task: Task, arrays: ArrayRecord) -> Outcome:
        """Sample the model."""
        if self._state is None:
            raise RunError("centralised training has not begun")
        weights = transport.decode_tensors(arrays)
        if self.settings.sample_from == "ema":
            weights = self._state.averaged_unet().state_dict()
        outcome = draw_from_model(task, weights)
        curve = loss_curve(self._state.losses)
        outcome.curves["centralised"] = [
            (int(step), loss) for step, loss in zip(curve["steps"], curve["losses"], strict=True)
        ]
        return outcome

    def state_dict(self) -> dict[str, Any]:
        """Return weights, weight average, optimiser, random state and losses."""
        return {"training": self._state.state_dict()} if self._state else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`; after :meth:`begin`."""
        if self._state:
            self._state.load_state_dict(state["training"])
            self._progress = self._new_progress(self._state.steps)

    def _new_progress(self, done: int) -> Progress:
        return Progress("centralised training: step", self._steps, logger.info, done=done)
