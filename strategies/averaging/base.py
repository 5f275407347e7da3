"""What all parameter-averaging strategies share: rounds, participants, reply checks, the average over rounds."""

from __future__ import annotations

import inspect
import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, TypedDict, cast

import torch
from flwr.app import ArrayRecord, MetricRecord

from fedsynth.config import RunConfig
from fedsynth.diffusion import initial_unet
from fedsynth.messages import MessageError, TrainAnswer, TrainRequest, wire
from fedsynth.seeding import make_generator
from fedsynth.spec import ImageSpec
from strategies.averaging.aggregation import Shapes, check_model, shapes
from strategies.averaging.updates import Update, mean_metrics
from strategies.base import Outcome, SynthesisStrategy, Task
from strategies.checks import in_range, known_sampler, one_of
from strategies.conversation.ask import Question, Quorum
from strategies.conversation.exchange import Exchange
from strategies.global_model import draw_from_model


class AveragingOptions(TypedDict, total=False):
    """Keyword arguments of every averaging strategy, see :class:`AveragingStrategy`."""

    num_rounds: int
    sampler: str
    sample_from: str
    server_ema_decay: float
    fraction_train: float
    min_train_nodes: int


class AveragingStrategy(SynthesisStrategy):
    """Silos train the global model on their own images, the server combines their weights, round after round.

    Raw weights travel and local optimisers start fresh each round. At the end the server samples the global model, or
    its exponential moving average over rounds. An answer that is an error, is not finite, does not fit the model or
    claims an impossible number of images is left out, with name and reason in the log; so is a silo that is late. It
    takes part again in the next round it is drawn for.

    Args:
        num_rounds: rounds; each silo makes its share of ``train-steps`` optimiser steps a round.
        sampler: how the global model is sampled.
        sample_from: ``raw`` (the last model) or ``ema`` (its average over rounds).
        server_ema_decay: weight of the past in the average over rounds, 0 <= decay < 1.
        fraction_train: share of the silos that train in a round, 0 < fraction <= 1; rounded down.
        min_train_nodes: least number of silos that train in a round.

    Raises:
        UserError: a value out of range.
    """

    quorum: ClassVar[Quorum] = "half"

    def __init__(
        self,
        *,
        num_rounds: int = 20,
        sampler: str = "sde-dpmsolver++",
        sample_from: str = "raw",
        server_ema_decay: float = 0.5,
        fraction_train: float = 1.0,
        min_train_nodes: int = 2,
    ) -> None:
        self.sampler = known_sampler(sampler)
        self.sample_from = one_of("sample-from", sample_from, ("raw", "ema"))
        self.num_rounds = int(in_range("num-rounds", num_rounds, 1))
        self.server_ema_decay = in_range("server-ema-decay", server_ema_decay, 0, 1, high_open=True)
        self.fraction_train = in_range("fraction-train", fraction_train, 0, 1, low_open=True)
        self.min_train_nodes = int(in_range("min-train-nodes", min_train_nodes, 1))
        self._config = RunConfig()
        self._arrays: ArrayRecord | None = None
        self._shapes: Shapes = {}
        self._average: dict[str, torch.Tensor] | None = None
        self._losses: list[tuple[int, float]] = []

    def __init_subclass__(cls) -> None:
        """Show the inherited keyword arguments in the signature, where defaults of the configuration are looked up."""
        super().__init_subclass__()
        found: dict[str, inspect.Parameter] = {}
        for base in reversed(cls.__mro__):
            if "__init__" in base.__dict__ and issubclass(base, AveragingStrategy):
                parameters = inspect.signature(base.__dict__["__init__"]).parameters.values()
                found |= {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
        cls.__signature__ = inspect.Signature(list(found.values()))  # type: ignore[attr-defined]

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

    def begin(self, task: Task, exchange: Exchange) -> ArrayRecord:
        """Return the initial weights."""
        self._task = task
        self._config = task.config
        return wire.encode_tensors(initial_unet(task.config, task.spec).state_dict())

    def questions(self, server_round: int, arrays: ArrayRecord) -> list[Question[TrainAnswer]]:
        """Return what to ask: the silos of this round get the weights and a number of optimiser steps."""
        self._arrays = arrays
        self._shapes = shapes(arrays)
        dtype = self._config.exchange.wire_dtype
        if dtype != "float32":
            arrays = wire.encode_tensors(wire.decode_tensors(arrays), dtype)
        silos = self._participants(server_round)
        return [(silo, self.train_request(server_round, arrays, silo)) for silo in silos]

    def train_request(self, server_round: int, arrays: ArrayRecord, silo: int) -> TrainRequest:
        """Return what one silo is asked; without a run there are no images to speak of, and no steps."""
        if self._task is None:
            return TrainRequest(arrays=arrays, spec=ImageSpec(1, 1, ("unknown",)), server_round=server_round, steps=0)
        total = self._config.training.train_steps
        steps = total * server_round // self.num_rounds - total * (server_round - 1) // self.num_rounds
        return TrainRequest(arrays=arrays, spec=self._task.spec, server_round=server_round, steps=steps)

    def check_answer(self, silo: int, answer: TrainAnswer) -> None:
        """Refuse a weight that cannot be had for the asking, and a model that does not fit."""
        most = self._config.exchange.max_silo_images
        if not 1 <= answer.num_examples <= most:
            raise MessageError(
                f"num-examples = {answer.num_examples}: must be a whole number from 1 to max-silo-images = {most}"
            )
        check_model(answer.arrays, self.expected_shapes(silo))

    def expected_shapes(self, silo: int) -> Shapes:
        """Return the layers that a silo's answer must hold, by default all of the global model's."""
        return self._shapes

    def fold(
        self, server_round: int, answers: Iterator[tuple[int, TrainAnswer]]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combine the weights of all usable answers, in the order of silos rather than of arrival."""
        answered = sorted((self._update(silo, answer) for silo, answer in answers), key=lambda update: update.silo)
        if not answered:
            return None, None
        updates = self.select(answered)
        metrics = mean_metrics(updates)
        # Those that are not chosen have worked, too.
        metrics["client-seconds"] = sum(update.seconds for update in answered)
        if "loss" in metrics:
            self._losses.append((server_round, float(cast(float, metrics["loss"]))))
        combined = self._in_precision_sent(self.combine(server_round, updates))
        arrays = self.refine(server_round, combined, metrics)
        if self.sample_from == "ema":
            self._follow(wire.decode_tensors(arrays))
        return arrays, metrics

    def _update(self, silo: int, answer: TrainAnswer) -> Update:
        # The census says who was asked: an answer may claim another name.
        name = self.census.members[silo].name if self.census.known else answer.sender.name
        return Update(silo, name, answer.arrays, answer.num_examples, answer.loss, answer.seconds)

    def finish(self, task: Task, arrays: ArrayRecord) -> Outcome:
        """Sample the global model."""
        weights = self._average if self.sample_from == "ema" else None
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
    def sent(self) -> ArrayRecord:
        """The weights that this round's silos started from; empty before the first round."""
        return self._arrays or ArrayRecord()

    def num_participants(self, available: int) -> int:
        """Silos that train in a round, of ``available``."""
        # 0.3 * 10 is 3.0000000000000004 or 2.9999999999999996, depending on the digits.
        share = math.floor(self.fraction_train * available + 1e-9)
        return min(available, max(share, self.min_train_nodes))

    def _participants(self, server_round: int) -> list[int]:
        """Draw the silos of a round: by index, since node ids change from run to run."""
        silos = list(range(len(self.census)))
        count = self.num_participants(len(silos))
        if count == len(silos):
            return silos
        generator = make_generator(self._config.run.seed, "participants", server_round)
        drawn = torch.randperm(len(silos), generator=generator)[:count]
        return sorted(drawn.tolist())

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
                # Not lerp_: whether that rounds its product depends on the CPU.
                value.mul_(self.server_ema_decay).add_((1 - self.server_ema_decay) * current[name])
            else:
                value.copy_(current[name])
