"""What all parameter-averaging strategies share: rounds, participants, reply checks, the average over rounds."""

from __future__ import annotations

import logging
import time
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast
from uuid import uuid4

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, MetricRecord
from numpy.typing import NDArray

from fedsynth.averaging import Layers
from fedsynth.averaging.participants import num_participants, participants
from fedsynth.averaging.rules import updates_needed
from fedsynth.config import AUTO, RunConfig
from fedsynth.config.methods import AveragingSettings
from fedsynth.diffusion import initial_unet, part_of
from fedsynth.disk import check_free_space
from fedsynth.errors import RunError
from fedsynth.message_size import StreamNeeds, refuse_too_large, streamed_shards, weights_bytes
from fedsynth.messages import MessageError, TrainAnswer, TrainRequest, TrainShardsAnswer, TrainShardsRequest, transport
from fedsynth.spec import ImageSpec
from fedsynth.units import human_bytes
from strategies.averaging.aggregation import Shapes, check_combined, check_model, shapes
from strategies.averaging.streamed import WeightStream
from strategies.averaging.summed import SUMS_ONLY, mean_update, sum_weights
from strategies.averaging.updates import Update, mean_metrics
from strategies.base import Outcome, SynthesisStrategy, Task
from strategies.conversation.ask import Question, Quorum, ask
from strategies.conversation.exchange import Exchange
from strategies.conversation.replicas import CERTIFIED, WHOM, Replication, SignedUpdate
from strategies.conversation.secure_sum import SecureSum, refuse_keyless
from strategies.global_model import draw_from_model, preview_of_model

logger = logging.getLogger("fedsynth")


class AveragingStrategy(SynthesisStrategy):
    """Silos train the global model on their own images, the server combines their weights, round after round.

    Raw weights travel and local optimisers start fresh each round. At the end the server samples the global model, or
    its exponential moving average over rounds. An answer that is an error, is not finite, does not fit the model or
    claims an impossible number of images is left out, with name and reason in the log; so is a silo that is late. It
    takes part again in the next round it is drawn for.

    With ``secure-aggregation`` the silos answer with their updates for a secure sum, all of them in every round, and
    :meth:`combine` gets one answer, the mean of theirs; whoever drops out has left the run.
    """

    quorum: ClassVar[Quorum] = "half"
    Settings = AveragingSettings
    settings: AveragingSettings

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.num_rounds = self.settings.num_rounds
        self._config = RunConfig()
        self._arrays: ArrayRecord | None = None
        self._shapes: Shapes = {}
        self._average: dict[str, torch.Tensor] | None = None
        self._losses: list[tuple[int, float]] = []
        # Tells this run from others at the silos; random, but nothing computed depends on it.
        self._run_token = uuid4().hex
        self._members: tuple[str, ...] = ()
        self._replication: Replication | None = None
        self._stream: WeightStream | None = None

    @abstractmethod
    def combine(self, server_round: int, updates: Sequence[Update]) -> ArrayRecord:
        """Return the next global weights.

        Args:
            server_round: 1 for the first.
            updates: usable answers sorted by silo, at least one; their records may be emptied.
        """

    @property
    def if_diverged(self) -> str:
        """What to do when sound answers make an absurd model, a sentence."""
        return "Lower learning-rate, or see which silo's loss grows."

    def select(self, updates: list[Update]) -> list[Update]:
        """Return the answers that :meth:`combine` gets, by default all; their records must stay whole."""
        return updates

    def select_streamed(self, updates: list[Update], parts: Iterable[Sequence[Layers]]) -> list[Update]:
        """As :meth:`select`, where weights travel in shards.

        Args:
            updates: without their weights.
            parts: those, shard by shard: layers of every update, in their order; read where they are needed.
        """
        return updates

    def refine(self, server_round: int, arrays: ArrayRecord, metrics: MetricRecord) -> ArrayRecord:
        """Return the combined weights after work of the server's own, by default none; may add to ``metrics``."""
        return arrays

    def prepare(self, task: Task, exchange: Exchange) -> ArrayRecord:
        """Return the initial weights.

        Raises:
            RunError: updates are to be summed in secret, and a silo has no keys for it.
        """
        self._config = task.config
        if task.config.cooperation.secure_aggregation:
            refuse_keyless(task.census)
            logger.warning(
                "secure-aggregation = true: the server sees no single update: one that is false, or of a training that"
                " has diverged, moves the model unnoticed, and no silo's loss is told"
            )
            self._members = tuple(sorted(member.name for member in task.census))
        if task.config.replicated:
            self._replication = Replication(
                exchange, task.census, task.config, task.spec, self._run_token, task.audit, task.aggregators
            )
            logger.warning("%s sees the single updates of all silos", self._replication.who)
        return self.start_from(
            task, transport.encode_tensors(initial_unet(task.config, task.spec).state_dict()), exchange
        )

    def start_from(self, task: Task, arrays: ArrayRecord, exchange: Exchange) -> ArrayRecord:
        """Return the weights of the first round, on disk where they travel in shards.

        Raises:
            UserError: there is no room for them on the server's disk, or they are too large to travel whole.
        """
        self._task, self._config = task, task.config
        self._stream = self._weight_stream({name: array.shape for name, array in arrays.items()}, exchange)
        return self.on_disk(arrays)

    def on_disk(self, arrays: ArrayRecord) -> ArrayRecord:
        """Move the weights that rounds begin with to disk, where they travel in shards."""
        return arrays if self._stream is None else self._stream.on_disk(0, arrays)

    def _weight_stream(self, shapes: Mapping[str, tuple[int, ...]], exchange: Exchange) -> WeightStream | None:
        """Return how weights travel in shards; None: they do not."""
        task = self._task
        assert task is not None
        if task.spool is None or not (shards := streamed_shards(task.config, shapes)):
            refuse_too_large(task.config, shapes)
            return None
        needs = StreamNeeds.of(task.config, shapes, self.num_participants(len(task.census)))
        check_free_space(task.spool, needs.server_disk)
        logger.info(
            "weights of %s travel in %d shards, above max-message-mb = %g; silos' answers are averaged from disk",
            human_bytes(weights_bytes(task.config, shapes)),
            len(shards),
            task.config.exchange.max_message_mb,
        )
        return WeightStream(task, task.spool, self._run_token, shards, exchange)

    def questions(self, server_round: int, arrays: ArrayRecord) -> list[Question[TrainAnswer]]:
        """Return what to ask: the silos of this round get the weights and a number of optimiser steps."""
        self._arrays = arrays
        self._shapes = shapes(arrays)
        dtype = self._config.exchange.wire_dtype
        if dtype != "float32":
            arrays = transport.encode_tensors(transport.decode_tensors(arrays), dtype)
        silos = self._participants(server_round)
        return [(silo, self.train_request(server_round, arrays, silo)) for silo in silos]

    def train_request(self, server_round: int, arrays: ArrayRecord, silo: int) -> TrainRequest:
        """Return the request to one silo; without a run it names no image format and no steps."""
        if self._task is None:
            return TrainRequest(arrays=arrays, spec=ImageSpec(1, 1, ("unknown",)), server_round=server_round, steps=0)
        total = self._config.train_steps
        first = total * (server_round - 1) // self.num_rounds
        steps = total * server_round // self.num_rounds - first
        return TrainRequest(
            arrays=arrays, spec=self._task.spec, server_round=server_round, steps=steps, first_step=first
        )

    def check_answer(self, silo: int, answer: TrainAnswer) -> None:
        """Refuse a weight that cannot be had for the asking, and a model that does not fit."""
        self._check_number(answer.num_examples)
        check_model(answer.arrays, self.expected_shapes(silo))

    def _check_number(self, num_examples: int) -> None:
        most = self._config.exchange.max_silo_images
        if not 1 <= num_examples <= most:
            raise MessageError(
                f"num-examples = {num_examples}: must be a whole number from 1 to max-silo-images = {most}"
            )

    def expected_shapes(self, silo: int) -> Shapes:
        """Return the layers that a silo's answer must hold, by default all of the global model's."""
        return self._shapes

    def aggregate(
        self, server_round: int, answers: Iterator[tuple[int, TrainAnswer]]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combine the weights of all usable answers, in the order of silos rather than of arrival.

        Raises:
            RunError: the combined model is not finite or absurd.
        """
        answered = sorted((self._update(silo, answer) for silo, answer in answers), key=lambda update: update.silo)
        if not answered:
            return None, None
        updates = self.select(answered)
        metrics = self._measured(server_round, updates, answered)
        return self._advanced(server_round, updates, metrics), metrics

    def _measured(self, server_round: int, updates: Sequence[Update], answered: Sequence[Update]) -> MetricRecord:
        """Note who takes part, and return what is known of a round before its answers are combined."""
        self.took_part(update.name for update in updates)
        metrics = mean_metrics(updates)
        # Those that are not chosen have worked, too.
        metrics["client-seconds"] = sum(update.seconds for update in answered)
        if "loss" in metrics:
            self._losses.append((server_round, float(cast(float, metrics["loss"]))))
        return metrics

    def run_round(self, server_round: int, arrays: ArrayRecord, exchange: Exchange) -> tuple[ArrayRecord, MetricRecord]:
        """Ask the silos, or have their updates summed in secret, and combine what comes of it.

        Raises:
            RunError: too few usable answers, or the combined model is not finite or absurd.
        """
        if self._replication is not None:
            return self._replicated_round(server_round, arrays, exchange, self._replication)
        if self._stream is not None:
            return self._streamed_round(server_round, arrays, exchange, self._stream)
        if not self._config.cooperation.secure_aggregation:
            return super().run_round(server_round, arrays, exchange)
        (_, question), *_ = self.questions(server_round, arrays)
        assert isinstance(question, TrainRequest)
        sums = SecureSum(exchange, self.census, self._run_token, self._members)
        parts, reporting = self.groups_of_weights()
        least = self._config.exchange.min_replies
        start = time.monotonic()
        mean = mean_update(
            sums,
            question,
            sum_weights(self.census, reporting),
            {name: parts.index(part_of(name)) if parts else 0 for name in arrays},
            parts,
            self.timeout,
            0 if least == AUTO else min(least, len(self._members)),
        )
        self.note_duration(time.monotonic() - start)
        self._members = sums.members
        self.took_part(mean.survivors)
        examples = sum(member.num_examples for member in self.census if member.name in mean.survivors)
        update = Update(0, ", ".join(mean.survivors), mean.arrays, examples)
        metrics = MetricRecord({"num-examples": examples, "silos": len(mean.survivors), "client-seconds": mean.seconds})
        return self._advanced(server_round, [update], metrics), metrics

    def _streamed_round(
        self, server_round: int, arrays: ArrayRecord, exchange: Exchange, stream: WeightStream
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Give the silos the weights in shards, have them train, fetch theirs, and combine those shard by shard."""
        self._arrays, self._shapes = arrays, shapes(arrays)
        asked = self._participants(server_round)
        needed = self.replies_needed(len(asked))
        with stream.spooled(), exchange.reply_log.as_one():
            given, digests = stream.give(server_round, arrays, asked, needed, self.timeout)
            nothing = ArrayRecord()
            questions: list[Question[TrainShardsAnswer]] = [
                (k, TrainShardsRequest.of(self.train_request(server_round, nothing, k), self._run_token, digests))
                for k in given
            ]

            def check(silo: int, answer: TrainShardsAnswer) -> None:
                self._check_number(answer.num_examples)

            told = ask(exchange, questions, self.census, needed=needed, timeout=self.timeout, check=check)
            trained = dict(self.timed(told))
            fetched = stream.fetch(server_round, trained, self._shapes, needed, self.timeout)
            answered = [
                Update(
                    silo=silo,
                    name=self.census.members[silo].name,
                    record=nothing,
                    num_examples=trained[silo].num_examples,
                    loss=trained[silo].loss,
                    seconds=given[silo] + trained[silo].seconds + fetched[silo],
                )
                for silo in sorted(fetched)
            ]
            updates = self.select_streamed(answered, stream.parts([update.silo for update in answered]))
            metrics = self._measured(server_round, updates, answered)
            moved: dict[str, Array] = {}
            for shard, names in enumerate(stream.shards):
                self._arrays = transport.record_of({name: arrays[name] for name in names})
                # Of their own memory: whoever combines them may empty them.
                of_shard = [
                    replace(update, record=transport.encode_tensors(stream.layers(update.silo, shard)))
                    for update in updates
                ]
                combined = self._in_precision_sent(self.combine(server_round, of_shard))
                self._settle(server_round, combined)
                moved |= stream.on_disk(server_round, combined)
        self._arrays = None
        stream.forget(server_round - 1)
        return self.refine(server_round, transport.record_of(moved), metrics), metrics

    def _replicated_round(
        self, server_round: int, arrays: ArrayRecord, exchange: Exchange, replication: Replication
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Ask the silos, and have what comes of it computed and certified by all aggregators; a void round changes
        nothing."""
        terms = replication.terms(server_round, arrays)
        questions: list[Question[TrainAnswer]] = []
        for silo, request in self.questions(server_round, arrays):
            assert isinstance(request, TrainRequest)
            questions.append((silo, replication.question(request, silo)))

        def check(silo: int, answer: TrainAnswer) -> None:
            self.check_answer(silo, answer)
            if any(array.dtype != arrays[name].dtype for name, array in answer.arrays.items()):
                raise MessageError("weights in another precision than they were sent in")
            replication.check_update(silo, answer.statement, answer.arrays, answer.num_examples, terms)

        # As many as aggregators ask for, who do not believe the server.
        own = updates_needed(self._config.run.strategy, self.settings)
        needed = max(self.replies_needed(len(questions)), len(questions) // 2 + 1, own)
        asked = ask(exchange, questions, self.census, needed=needed, timeout=self.timeout, check=check)
        answers = dict(self.timed(asked))
        updates = [self._update(silo, answers[silo]) for silo in sorted(answers)]
        self.took_part(update.name for update in updates)
        metrics = mean_metrics(updates)
        metrics["client-seconds"] = sum(update.seconds for update in updates)
        signed = [
            SignedUpdate(one.silo, one.name, one.record, str(answers[one.silo].statement), one.num_examples)
            for one in updates
        ]
        moved, measured = replication.aggregate(terms, arrays, signed)
        metrics.update(measured)
        if moved is None:
            return arrays, metrics
        check_model(moved, self._shapes)
        if "loss" in metrics:
            self._losses.append((server_round, float(cast(float, metrics["loss"]))))
        return moved, metrics

    def groups_of_weights(self) -> tuple[Sequence[str], list[list[bool]]]:
        """Return the parts of the network in which silos weigh differently, none by default, and who reports which.

        Returns:
            The parts; and for every silo whether it answers for each, or for the whole network: (K, G).
        """
        return (), [[member.name in self._members] for member in self.census]

    def took_part(self, names: Iterable[str]) -> None:
        """Note whose updates are combined in this round."""

    def _advanced(self, server_round: int, updates: list[Update], metrics: MetricRecord) -> ArrayRecord:
        """Return the weights after a round; may add to ``metrics``."""
        combined = self._in_precision_sent(self.combine(server_round, updates))
        arrays = self.refine(server_round, combined, metrics)
        self._settle(server_round, arrays)
        return arrays

    def _settle(self, server_round: int, arrays: ArrayRecord) -> None:
        """Check combined layers, and take them into the average over rounds.

        Raises:
            RunError: they are not finite or absurd.
        """
        try:
            check_combined(arrays)
        except ValueError as error:
            raise RunError(
                f"round {server_round}: the combined model is no model any more: {error}; nothing of this round was"
                f" saved. {self.if_diverged}"
            ) from error
        if self.settings.sample_from == "ema":
            self._follow(transport.decode_tensors(arrays))

    def _update(self, silo: int, answer: TrainAnswer) -> Update:
        # The census says who was asked: an answer may claim another name.
        name = self.census.members[silo].name if self.census.known else answer.sender.name
        return Update(silo, name, answer.arrays, answer.num_examples, answer.loss, answer.seconds)

    def preview(self, task: Task, arrays: ArrayRecord, rows: torch.Tensor) -> NDArray[np.uint8]:
        """Return what the model draws after the round."""
        return preview_of_model(task, transport.peek_tensors(arrays), rows)

    def finish(self, task: Task, arrays: ArrayRecord) -> Outcome:
        """Sample the global model."""
        weights = self._average if self.settings.sample_from == "ema" else None
        outcome = draw_from_model(task, weights or transport.peek_tensors(arrays))
        outcome.curves["mean over silos, by round"] = self._losses
        certified = self._replication.certified() if self._replication is not None else {}
        notes = (self._certified_by,) if certified else self.notes_on_sums()
        return replace(outcome, notes=(*outcome.notes, *notes), certified=certified)

    @property
    def _certified_by(self) -> str:
        chosen = self._config.replicas.aggregators
        return CERTIFIED.format(aggregators=chosen, whom=WHOM[chosen])

    def notes_on_sums(self) -> tuple[str, ...]:
        """Return what a reader must know where updates were summed in secret."""
        return (SUMS_ONLY,) if self._config.cooperation.secure_aggregation else ()

    def state_dict(self) -> dict[str, Any]:
        """Return the average over rounds and the losses; of secure sums, who is left in them."""
        state = {"average": self._average, "losses": [list(point) for point in self._losses]}
        summed = {"run-token": self._run_token, "members": list(self._members)}
        if self._replication is not None:
            return {**state, "run-token": self._run_token, "replicas": self._replication.state_dict()}
        if self._stream is not None:
            return {**state, "run-token": self._run_token}
        return {**state, **summed} if self._config.cooperation.secure_aggregation else state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self._average = state["average"]
        self._losses = [(int(number), float(loss)) for number, loss in state["losses"]]
        self._run_token = state.get("run-token", self._run_token)
        self._members = tuple(state.get("members", self._members))
        if self._stream is not None:
            self._stream.run_token = self._run_token
        if self._replication is not None:
            self._replication.load_state_dict(state["replicas"], self._run_token)

    @property
    def losses(self) -> list[tuple[int, float]]:
        """Mean loss of the silos by round, where they tell it."""
        return self._losses

    @property
    def averaged(self) -> dict[str, torch.Tensor] | None:
        """The moving average of the weights over rounds; None where the last ones are sampled from."""
        return self._average

    @property
    def sent(self) -> ArrayRecord:
        """The weights that this round's silos started from; empty before the first round."""
        return self._arrays or ArrayRecord()

    def num_participants(self, available: int) -> int:
        """Silos that train in a round, of ``available``."""
        return num_participants(available, self.settings.fraction_train, self.settings.min_train_nodes)

    def _participants(self, server_round: int) -> list[int]:
        """Draw the silos of a round."""
        silos = list(range(len(self.census)))
        if self._config.cooperation.secure_aggregation:
            return [silo for silo in silos if self.census.members[silo].name in self._members]
        return participants(self._config.run.seed, server_round, len(silos), self.num_participants(len(silos)))

    def _in_precision_sent(self, arrays: ArrayRecord) -> ArrayRecord:
        """Undo what answers in double precision would make of the model, and of everybody's traffic.

        Raises:
            RunError: what :meth:`combine` returned is no such model.
        """
        if self._arrays is not None and not (isinstance(arrays, ArrayRecord) and arrays.keys() == self._arrays.keys()):
            raise RunError(
                f"{type(self).__name__}.combine: must return an ArrayRecord with all layers of self.sent and no others;"
                f" it returned an object of {type(arrays).__name__}"
            )
        for name, sent in (self._arrays or {}).items():
            if arrays[name].dtype != sent.dtype:
                arrays[name] = transport.encode(transport.peek(arrays[name]), sent.dtype)
        return arrays

    def _follow(self, current: dict[str, torch.Tensor]) -> None:
        """Update the average over rounds of some layers, or all."""
        average = self._average = {} if self._average is None else self._average
        for name, new in current.items():
            if name not in average:
                average[name] = new
                continue
            value = average[name]
            if value.is_floating_point():
                # Not lerp_: whether that rounds its product depends on the CPU.
                decay = self.settings.server_ema_decay
                value.mul_(decay).add_((1 - decay) * new)
            else:
                value.copy_(new)
