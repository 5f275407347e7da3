"""FedDiffuse (de Goede et al. 2024, arXiv 2406.12575): averaging that exchanges parts of the U-Net."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from flwr.app import ArrayRecord

from fedsynth.config.methods import FedDiffuseSettings
from fedsynth.diffusion import PARTS, part_of
from fedsynth.diffusion.parts import EXCHANGED, reported_parts
from fedsynth.errors import RunError
from fedsynth.messages import TrainAnswer, TrainRequest, transport
from strategies.averaging.aggregation import Shapes, weighted_mean
from strategies.averaging.base import AveragingStrategy
from strategies.averaging.updates import Update
from strategies.base import Outcome, Task
from strategies.conversation.ask import Question, ask, replies_needed
from strategies.conversation.exchange import Exchange
from strategies.own_models.shares import collect_images, draw_owners, sample_questions

logger = logging.getLogger("fedsynth")


class FedDiffuse(AveragingStrategy):
    """FedAvg on the exchanged parts of the U-Net; what is not exchanged never leaves its silo.

    ``full`` is FedAvg. Under ``usplit`` the whole model goes out, and every silo reports one half of it, drawn anew
    each round. Under ``ulatdec`` bottleneck and decoder are exchanged, under ``udec`` the decoder alone: each silo then
    has an encoder, with its embeddings of time and class, of its own, there is no whole model on the server, and at the
    end every synthetic image is drawn by a silo that holds its class (our choice; the paper's code was not at hand).
    """

    how = "the silos trained one diffusion model together and exchanged parts of its weights"

    Settings = FedDiffuseSettings
    settings: FedDiffuseSettings

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._exchanged: Sequence[str] = EXCHANGED[self.settings.feddiffuse_method]
        self._reported: dict[int, tuple[str, ...]] = {}
        self._exchange: Exchange | None = None
        self._trained: set[str] = set()

    def prepare(self, task: Task, exchange: Exchange) -> ArrayRecord:
        """Return the exchanged part of the initial weights."""
        self._exchange = exchange
        whole = super().prepare(task, exchange)
        return ArrayRecord({name: array for name, array in whole.items() if part_of(name) in self._exchanged})

    def questions(self, server_round: int, arrays: ArrayRecord) -> list[Question[TrainAnswer]]:
        """Draw which parts every silo reports, and send the exchanged parts."""
        silos = self._participants(server_round)
        method = self.settings.feddiffuse_method
        self._reported = reported_parts(method, self._config.run.seed, server_round, silos)
        return super().questions(server_round, arrays)

    def train_request(self, server_round: int, arrays: ArrayRecord, silo: int) -> TrainRequest:
        """Say which parts to report, and whether the silo must have kept the others."""
        return replace(
            super().train_request(server_round, arrays, silo),
            run_token=self._run_token,
            report_parts=self._reported[silo],
            has_trained=self.census.members[silo].name in self._trained,
        )

    def expected_shapes(self, silo: int) -> Shapes:
        """Return the layers of the parts that the silo was to report."""
        return {name: shape for name, shape in self._shapes.items() if part_of(name) in self._reported[silo]}

    def combine(self, server_round: int, updates: Sequence[Update]) -> ArrayRecord:
        """Average every half over the silos that reported it; one that nobody reported stays as it was."""
        combined = dict(self._arrays or {})
        for group in self._groups(updates):
            records = [update.record for update in group]
            combined |= weighted_mean(records, [update.num_examples for update in group])
        return ArrayRecord(combined)

    def took_part(self, names: Iterable[str]) -> None:
        """Note which silos must have kept tensors of their own."""
        self._trained |= set(names)

    def groups_of_weights(self) -> tuple[Sequence[str], list[list[bool]]]:
        """Return the parts that the silos share, and which of them each reports under ``usplit``."""
        if self.settings.feddiffuse_method != "usplit":
            return super().groups_of_weights()
        rows = [[part in self._reported.get(silo, ()) for part in PARTS] for silo in range(len(self.census))]
        return PARTS, rows

    def finish(self, task: Task, arrays: ArrayRecord) -> Outcome:
        """Sample the global model, or have the silos sample theirs."""
        if len(self._exchanged) == len(PARTS):
            return super().finish(task, arrays)
        if self.settings.sample_from == "ema" and self._average is not None:
            arrays = transport.encode_tensors(self._average)
        return self._sampled_by_silos(task, arrays)

    def state_dict(self) -> dict[str, Any]:
        """Add the token under which the silos keep their own tensors, and which of them have any."""
        return {**super().state_dict(), "run-token": self._run_token, "trained": sorted(self._trained)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        super().load_state_dict(state)
        self._run_token = state["run-token"]
        self._trained = set(state["trained"])

    def _groups(self, updates: Sequence[Update]) -> list[list[Update]]:
        """Answers that hold the same parts, in the order of silos."""
        groups: dict[frozenset[str], list[Update]] = {}
        for update in updates:
            groups.setdefault(frozenset(update.record), []).append(update)
        return list(groups.values())

    def _sampled_by_silos(self, task: Task, arrays: ArrayRecord) -> Outcome:
        """Have every silo that has trained draw its share of the set with its own encoder."""
        if self._exchange is None:
            raise RunError("the silos draw the images: call begin first")
        trained = torch.tensor([member.name in self._trained for member in task.census])
        if absent := [member.name for member in task.census if member.name not in self._trained]:
            logger.warning("without a model, and left out of the drawing: %s", ", ".join(absent))
        owners = draw_owners(task, "class", trained)
        questions = sample_questions(
            task,
            owners,
            task.labels,
            torch.arange(len(owners)),
            weights=arrays,
            server_round=self.num_rounds,
            run_token=self._run_token,
        )
        needed = replies_needed(task.config.exchange.min_replies, len(questions), "all")
        shares = collect_images(ask(self._exchange, questions, task.census, needed=needed), task, owners)
        rows = shares.drawn.numpy()
        return Outcome(
            shares.images.numpy()[rows],
            task.labels.numpy()[rows],
            curves={"mean over silos, by round": self._losses},
            notes=(*shares.notes, *self.notes_on_sums()),
        )

    def notes_on_sums(self) -> tuple[str, ...]:
        """Add that single silos have drawn the images, where they have."""
        drawn = "each image was drawn by one silo with an encoder of its own, and the server saw by which"
        notes = super().notes_on_sums()
        return (*notes, drawn) if notes and len(self._exchanged) < len(PARTS) else notes
