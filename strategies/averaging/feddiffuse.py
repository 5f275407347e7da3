"""FedDiffuse (de Goede et al. 2024, arXiv 2406.12575): averaging that exchanges parts of the U-Net."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid

from fedsynth.config.methods import FedDiffuseSettings
from fedsynth.diffusion import PARTS, part_of
from fedsynth.messages import wire
from fedsynth.seeding import make_generator
from strategies.averaging.aggregation import Shapes, weighted_mean
from strategies.averaging.base import AveragingStrategy
from strategies.averaging.updates import Update
from strategies.base import Outcome, Task
from strategies.own_models.shares import collect_images, draw_owners, sample_requests

logger = logging.getLogger("fedsynth")

ENCODER, BOTTLENECK, DECODER = PARTS

EXCHANGED = {
    "full": PARTS,
    "usplit": PARTS,
    "ulatdec": (BOTTLENECK, DECODER),
    "udec": (DECODER,),
}
"""Method -> parts that the silos share; the others stay at home."""

HALVES = ((ENCODER, BOTTLENECK), (DECODER,))
"""What a silo reports under ``usplit``. Our reading: the cut that leaves the two halves nearest in size."""


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
        self._reported: dict[int, Sequence[str]] = {}
        # Tells the silos' own tensors of this run from those of another; random, but nothing computed depends on it.
        self._run_token = uuid4().hex
        self._grid: Grid | None = None
        self._trained: set[str] = set()

    def begin(self, task: Task, grid: Grid) -> ArrayRecord:
        """Return the exchanged part of the initial weights."""
        self._grid = grid
        return self._only(super().begin(task, grid), self._exchanged)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the exchanged parts, and say which to report and whether the silo must have kept the others."""
        content = ConfigRecord({**config, "run-token": self._run_token})
        messages = list(super().configure_train(server_round, arrays, content, grid))
        self._reported = self._assign(server_round, [message.metadata.dst_node_id for message in messages])
        names = {member.node_id: member.name for member in self.census or ()}
        for message in messages:
            node = message.metadata.dst_node_id
            wire.config(message)["report-parts"] = list(self._reported[node])
            wire.config(message)["has-trained"] = names.get(node) in self._trained
        return messages

    def expected_shapes(self, reply: Message) -> Shapes | None:
        """Layers of the parts that the silo was to report."""
        parts = self._reported.get(reply.metadata.src_node_id)
        if self._shapes is None or parts is None:
            return self._shapes
        return {name: shape for name, shape in self._shapes.items() if part_of(name) in parts}

    def combine(self, server_round: int, updates: Sequence[Update]) -> ArrayRecord:
        """Average every half over the silos that reported it; one that nobody reported stays as it was."""
        self._trained |= {update.name for update in updates}
        combined = dict(self._arrays or {})
        for group in self._groups(updates):
            records, counts = [update.record for update in group], [update.num_examples for update in group]
            combined |= weighted_mean(records, counts)
        return ArrayRecord(combined)

    def finish(self, task: Task, arrays: ArrayRecord) -> Outcome:
        """Sample the global model, or have the silos sample theirs."""
        if len(self._exchanged) == len(PARTS):
            return super().finish(task, arrays)
        if self.settings.sample_from == "ema" and self._average is not None:
            arrays = wire.encode_tensors(self._average)
        images = self._sampled_by_silos(task, arrays)
        return Outcome(images, task.labels.numpy(), curves={"mean over silos, by round": self._losses})

    def state_dict(self) -> dict[str, Any]:
        """Add the token under which the silos keep their own tensors, and which of them have any."""
        return {**super().state_dict(), "run-token": self._run_token, "trained": sorted(self._trained)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        super().load_state_dict(state)
        self._run_token, self._trained = state["run-token"], set(state["trained"])

    def _assign(self, server_round: int, nodes: list[int]) -> dict[int, Sequence[str]]:
        """Decide what every silo reports; ``usplit`` draws two groups of equal size, or one silo more for the first."""
        if self.settings.feddiffuse_method != "usplit" or len(nodes) < len(HALVES):
            return dict.fromkeys(nodes, self._exchanged)
        generator = make_generator(self._config.run.seed, "halves", server_round)
        order = torch.randperm(len(nodes), generator=generator).tolist()
        return {nodes[k]: HALVES[place % len(HALVES)] for place, k in enumerate(order)}

    def _groups(self, updates: Sequence[Update]) -> list[list[Update]]:
        """Answers that hold the same parts, in the order of silos."""
        groups: dict[frozenset[str], list[Update]] = {}
        for update in updates:
            groups.setdefault(frozenset(update.record), []).append(update)
        return list(groups.values())

    def _sampled_by_silos(self, task: Task, arrays: ArrayRecord) -> np.ndarray:
        """Every silo that has trained draws its share of the set with its own encoder."""
        assert self._grid is not None, "begin keeps the grid"
        trained = torch.tensor([member.name in self._trained for member in task.census])
        if absent := [member.name for member in task.census if member.name not in self._trained]:
            logger.warning("without a model, and left out of the drawing: %s", ", ".join(absent))
        owners = draw_owners(task, "class", trained)
        config = {**self.train_config(task), "run-token": self._run_token, "server-round": self.num_rounds}
        numbers = torch.arange(len(owners))
        requests = sample_requests(task, owners, task.labels, numbers, config, arrays)
        return collect_images(self._grid.send_and_receive(requests), task, owners)[0].numpy()

    @staticmethod
    def _only(arrays: ArrayRecord, parts: Sequence[str]) -> ArrayRecord:
        return ArrayRecord({name: array for name, array in arrays.items() if part_of(name) in parts})
