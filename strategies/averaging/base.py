"""What all parameter-averaging strategies share: rounds, participants, reply checks, the average over rounds."""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from fedsynth.config import AUTO, RunConfig
from fedsynth.config.methods import AveragingSettings
from fedsynth.diffusion import initial_unet
from fedsynth.messages import wire
from fedsynth.seeding import make_generator
from strategies.averaging.aggregation import Shapes, shapes
from strategies.averaging.updates import Update, mean_metrics, read_update
from strategies.base import Outcome, SynthesisStrategy, Task
from strategies.conversation.census import Census
from strategies.conversation.replies import claimed_name, sound
from strategies.global_model import draw_from_model

logger = logging.getLogger("fedsynth")


class AveragingStrategy(SynthesisStrategy):
    """Silos train the global model on their own images, the server combines their weights, round after round.

    Raw weights travel and local optimisers start fresh each round. At the end the server samples the global model, or
    its exponential moving average over rounds. An answer that is an error, is not finite, does not fit the model or
    claims an impossible number of images is left out, with name and reason in the log; so is a silo that is late. It
    takes part again in the next round it is drawn for.
    """

    Settings = AveragingSettings
    settings: AveragingSettings

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.num_rounds = self.settings.num_rounds
        self._config = RunConfig()
        self._task: Task | None = None
        self._arrays: ArrayRecord | None = None
        self._shapes: Shapes | None = None
        self._asked = 1
        self._average: dict[str, torch.Tensor] | None = None
        self._losses: list[tuple[int, float]] = []

    @abstractmethod
    def combine(self, server_round: int, updates: Sequence[Update]) -> ArrayRecord:
        """Return the next global weights.

        Args:
            server_round: 1 for the first.
            updates: sound answers sorted by silo, at least one; their records may be emptied.
        """

    def select(self, updates: list[Update]) -> list[Update]:
        """Return the answers that :meth:`combine` gets, by default all; their records must stay whole."""
        return updates

    def refine(self, server_round: int, arrays: ArrayRecord, metrics: MetricRecord) -> ArrayRecord:
        """Return the combined weights after work of the server's own, by default none; may add to ``metrics``."""
        return arrays

    def begin(self, task: Task, grid: Grid) -> ArrayRecord:
        """Return the initial weights."""
        self._task, self._config = task, task.config
        return wire.encode_tensors(initial_unet(task.config, task.spec).state_dict())

    def train_config(self, task: Task) -> ConfigRecord:
        """Add the optimiser steps of the whole run."""
        config = super().train_config(task)
        config["train-steps"] = task.config.training.train_steps
        return config

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the weights to the silos of this round, with their number of optimiser steps."""
        self._arrays, self._shapes = arrays, shapes(arrays)
        content = {**config, "server-round": server_round}
        if "train-steps" in config:
            content["steps"] = self._share_of_steps(server_round, int(wire.number(config, "train-steps")))
        nodes = self._participants(server_round, grid)
        self._asked = len(nodes)
        dtype, ttl = self._config.exchange.wire_dtype, self._config.exchange.reply_timeout
        if dtype != "float32":
            arrays = wire.encode_tensors(wire.decode_tensors(arrays), dtype)
        return [wire.request(node, wire.TRAIN, content, arrays, ttl) for node in nodes]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combine the weights of all sound answers, in the order of silos rather than of arrival.

        Raises:
            RunError: fewer sound answers than ``min-replies``.
        """
        sound_answers = self._collect(replies)
        if not sound_answers:
            return None, None
        updates = self.select(sound_answers)
        metrics = mean_metrics(updates)
        # Those that are not chosen have worked, too.
        metrics["client-seconds"] = sum(update.seconds for update in sound_answers)
        if "loss" in metrics:
            self._losses.append((server_round, wire.number(metrics, "loss")))
        combined = self._in_precision_sent(self.combine(server_round, updates))
        arrays = self.refine(server_round, combined, metrics)
        if self.settings.sample_from == "ema":
            self._follow(wire.decode_tensors(arrays))
        return arrays, metrics

    def finish(self, task: Task, arrays: ArrayRecord) -> Outcome:
        """Sample the global model."""
        weights = self._average if self.settings.sample_from == "ema" else None
        outcome = draw_from_model(task, weights or wire.decode_tensors(arrays))
        outcome.curves["mean over silos, by round"] = self._losses
        return outcome

    def state_dict(self) -> dict[str, Any]:
        """Return the average over rounds and the losses."""
        return {"average": self._average, "losses": [list(point) for point in self._losses]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self._average = state["average"]
        self._losses = [(int(number), float(loss)) for number, loss in state["losses"]]

    @property
    def census(self) -> Census | None:
        """The silos, once the run has begun."""
        return self._task.census if self._task else None

    @property
    def sent(self) -> ArrayRecord:
        """The weights that this round's silos started from; empty before the first round."""
        return self._arrays or ArrayRecord()

    def num_participants(self, available: int) -> int:
        """Silos that train in a round, of ``available``."""
        # 0.3 * 10 is 3.0000000000000004 or 2.9999999999999996, depending on the digits.
        share = math.floor(self.settings.fraction_train * available + 1e-9)
        return min(available, max(share, self.settings.min_train_nodes))

    def _participants(self, server_round: int, grid: Grid) -> list[int]:
        """Draw the silos of a round: by position, since node ids change from run to run."""
        nodes = [member.node_id for member in self.census] if self.census else sorted(grid.get_node_ids())
        count = self.num_participants(len(nodes))
        if count == len(nodes):
            return nodes
        generator = make_generator(self._config.run.seed, "participants", server_round)
        drawn = torch.randperm(len(nodes), generator=generator)[:count]
        return [nodes[k] for k in sorted(drawn.tolist())]

    def _share_of_steps(self, server_round: int, total: int) -> int:
        return total * server_round // self.num_rounds - total * (server_round - 1) // self.num_rounds

    def _collect(self, replies: Iterable[Message]) -> list[Update]:
        return sorted(sound(replies, self._needed(), self._read, self._name), key=lambda update: update.order)

    def _needed(self) -> int:
        """Sound answers a round needs."""
        if self._task is None:
            return 0
        asked = self._config.exchange.min_replies
        return math.ceil(self._asked / 2) if asked == AUTO else min(asked, self._asked)

    def _name(self, reply: Message) -> str:
        """Name of the silo that was asked: an answer may claim another."""
        position = self.census.position(reply) if self.census else None
        return self.census.members[position].name if self.census and position is not None else claimed_name(reply)

    def _read(self, reply: Message) -> Update:
        update = read_update(reply, self.expected_shapes(reply), self._config.exchange.max_silo_images)
        position = self.census.position(reply) if self.census else None
        if self.census and position is not None:
            update.order = position, self.census.members[position].name
        return update

    def expected_shapes(self, reply: Message) -> Shapes | None:
        """Layers an answer must hold, by default all of the global model's."""
        return self._shapes

    def _in_precision_sent(self, arrays: ArrayRecord) -> ArrayRecord:
        """Undo what answers in double precision would make of the model, and of everybody's traffic."""
        for name, sent in (self._arrays or {}).items():
            if arrays[name].dtype != sent.dtype:
                arrays[name] = wire.encode(wire.peek(arrays[name]), sent.dtype)
        return arrays

    def _follow(self, current: dict[str, torch.Tensor]) -> None:
        """Update the average over rounds."""
        if self._average is None:
            self._average = current
            return
        for name, value in self._average.items():
            if value.is_floating_point():
                value.lerp_(current[name], 1 - self.settings.server_ema_decay)
            else:
                value.copy_(current[name])
