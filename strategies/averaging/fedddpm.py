"""FedDDPM and FedDDPM+ (Peng et al. 2025, arXiv 2503.06426)."""

from __future__ import annotations

import logging
from typing import Any

from flwr.app import ArrayRecord, MetricRecord

from fedsynth.config.methods import FedDDPMPlusSettings, FedDDPMSettings
from fedsynth.diffusion import EncodedImages, TrainingState, codec_of, initial_unet, pick_device, train
from fedsynth.errors import RunError
from fedsynth.messages import transport
from fedsynth.messages.fields import MAX_SECONDS
from fedsynth.seeding import make_generator
from strategies.averaging.auxiliary import AuxiliarySet, draw_auxiliary_set
from strategies.averaging.fedavg import FedAvg
from strategies.base import Task
from strategies.conversation.exchange import Exchange
from strategies.own_models.local_training import train_local_models

logger = logging.getLogger("fedsynth")


class FedDDPM(FedAvg):
    """FedAvg, corrected on the server after every round with images that stand for all silos.

    Before the rounds every silo trains a model of its own for ``local-steps`` steps, which come on top of the rounds',
    and uploads it; the server draws the auxiliary set from them. After every average it takes optimiser steps on that
    set. The paper's sizes, steps and rates could not be found: the defaults are our choice.
    """

    how = (
        "the silos trained one diffusion model together, which the server corrected with images drawn"
        " from models that the silos had uploaded"
    )

    Settings = FedDDPMSettings
    settings: FedDDPMSettings

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._auxiliary: AuxiliarySet | None = None

    def prepare(self, task: Task, exchange: Exchange) -> ArrayRecord:
        """Return the initial weights, with the auxiliary set at hand."""
        train_local_models(exchange, task)
        self._auxiliary = draw_auxiliary_set(task, exchange, self.settings.aux_samples)
        return super().prepare(task, exchange)

    def resume(self, task: Task, exchange: Exchange, state: dict[str, Any]) -> None:
        """Continue with the auxiliary set of the run: the silos upload nothing again."""
        self._task = task
        super().prepare(task, exchange)
        self.load_state_dict(state)

    def refine(self, server_round: int, arrays: ArrayRecord, metrics: MetricRecord) -> ArrayRecord:
        """Correct the average."""
        metrics["server-steps"] = self.settings.server_steps
        return self.correct(server_round, arrays)

    @property
    def if_diverged(self) -> str:
        """Name the server's own steps, too."""
        rate = self.settings.correction_learning_rate
        return f"Lower learning-rate or correction-learning-rate ({rate:g}), or see which silo's loss grows."

    def correct(self, server_round: int, arrays: ArrayRecord) -> ArrayRecord:
        """Return the weights after ``server_steps`` optimiser steps on the auxiliary set.

        Raises:
            RunError: there is no auxiliary set.
        """
        if self._auxiliary is None or self._task is None:
            raise RunError("a correction needs the auxiliary set: call begin first")
        config = self._config
        steps = self.settings.server_steps
        changes = {"learning_rate": self.settings.correction_learning_rate, "warmup_steps": 0}
        recipe = config.recipe.model_copy(update={**changes, "learning_rate_decay": "constant"})
        unet = initial_unet(config, self._task.spec)
        unet.load_state_dict(transport.decode_tensors(arrays))
        generator = make_generator(config.run.seed, "correction", server_round)
        state = TrainingState(unet.to(pick_device(config.run.device)), recipe, generator, steps)
        images = EncodedImages(self._auxiliary.images.numpy(), codec_of(config, self._task.spec))
        losses = train(state, images, self._auxiliary.labels, config.training, steps)
        logger.info("round %d corrected: loss on the auxiliary set %.4g", server_round, sum(losses) / len(losses))
        return transport.encode_tensors(state.unet.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Add the auxiliary set, and what the silos' own models cost."""
        state = super().state_dict()
        if self._auxiliary is not None:
            state["auxiliary"] = {"images": self._auxiliary.images, "labels": self._auxiliary.labels}
            state["train-seconds"] = {member.name: member.train_seconds for member in self.census}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        super().load_state_dict(state)
        self._auxiliary = AuxiliarySet(**state["auxiliary"])
        for member in self.census:
            seconds = float(state["train-seconds"][member.name])
            # Earlier versions kept whatever a silo said.
            member.train_seconds = seconds if 0 <= seconds <= MAX_SECONDS else 0.0


class FedDDPMPlus(FedDDPM):
    """FedDDPM that corrects only when learning is slow.

    Our choice of what is slow, as the paper's could not be found: over ``slow_window`` rounds the silos' mean loss fell
    by less than the share ``slow_tolerance``.
    """

    Settings = FedDDPMPlusSettings
    settings: FedDDPMPlusSettings

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._corrected: list[int] = []

    def refine(self, server_round: int, arrays: ArrayRecord, metrics: MetricRecord) -> ArrayRecord:
        """Correct the average if learning is slow.

        Raises:
            RunError: no silo tells its loss.
        """
        if not self._losses:
            raise RunError(
                "fedddpm-plus corrects when the silos' loss falls slowly, and no silo tells its loss: have them set"
                " tell-train-loss = true in their policies, or use strategy = 'fedddpm'"
            )
        done = self.settings.correct_once and bool(self._corrected)
        if done or not learning_is_slow(
            [loss for _, loss in self._losses], self.settings.slow_window, self.settings.slow_tolerance
        ):
            metrics["server-steps"] = 0
            return arrays
        logger.info("round %d: learning is slow", server_round)
        self._corrected.append(server_round)
        return super().refine(server_round, arrays, metrics)

    def state_dict(self) -> dict[str, Any]:
        """Add the rounds that were corrected."""
        return {**super().state_dict(), "corrected": list(self._corrected)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        super().load_state_dict(state)
        self._corrected = list(state["corrected"])


def learning_is_slow(losses: list[float], window: int, tolerance: float) -> bool:
    """Whether the loss fell by less than the share ``tolerance`` over the last ``window`` rounds; no with fewer."""
    if len(losses) <= window:
        return False
    before = losses[-1 - window]
    return before - losses[-1] < tolerance * before
