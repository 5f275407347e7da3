"""Replicated runs in this process: real silos' code and keys, messages that a test may change, lose or withhold."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from acting_settings import acting
from flwr.app import Message
from summed_rounds import TINY, HookedGrid, LostError

from fedsynth.api.in_process_run import InProcessRun, begin_run
from fedsynth.config import Scalar
from fedsynth.messages import AggregateAnswer, AggregateRequest, Request, TrainRequest, transport
from fedsynth.output.audit_files import LOG
from fedsynth.privacy.sums import SecretKeys
from fedsynth.privacy.sums.key_files import read_secret
from fedsynth.replicas.envelopes import sign
from fedsynth.replicas.statements import Aggregate, Terms
from strategies.averaging.base import AveragingStrategy
from strategies.conversation.audit_log import AuditLog
from strategies.conversation.replicas import Replication
from strategies.cooperation.dfd import DfD

AGGREGATE, TRAIN = AggregateRequest.kind, TrainRequest.kind


class Grid(HookedGrid):
    """Besides, changes answers, withholds those of ``silent``, and gives those of ``slow`` when no other is there."""

    silent: set[tuple[str, int]]
    slow: set[tuple[str, int]]
    late: dict[str, Message]
    change: Callable[[str, int, Message], Message]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        ids = list(message_ids)
        if not self._answers.keys() & set(ids):
            self._answers |= self.late
            self.late.clear()
        return super().pull_messages(ids)

    def _answer(self, message: Message) -> str:
        number = super()._answer(message)
        kind, silo, answer = self.crossed[-1]
        if not answer.has_error():
            self._answers[number] = self.change(kind, silo, answer)
        if (kind, silo) in self.silent:
            del self._answers[number]
        if (kind, silo) in self.slow:
            self.late[number] = self._answers.pop(number)
        return number


@dataclass
class Replicated:
    """A run of four silos that aggregate; a round is played by :meth:`play`.

    Attributes:
        on_question: called before a silo is asked; may raise ``LostError`` or change the message.
        on_answer: returns what the server gets.
    """

    folder: Path
    settings: dict[str, Scalar] = field(default_factory=dict)
    on_question: Callable[[str, int, Message], None] = lambda kind, silo, question: None
    on_answer: Callable[[str, int, Message], Message] = lambda kind, silo, answer: answer
    run: InProcessRun = field(init=False)
    grid: Grid = field(init=False)

    def __post_init__(self) -> None:
        tiny = {**TINY, "train-steps": 9, "num-rounds": 9, "samples-per-client": 20, "block-out-channels": "4,4"}
        flat = acting(tiny, {"aggregators": "silos", "state-dir": str(self.folder), **self.settings})

        def make(given: dict[str, Scalar], number: int) -> Grid:
            self.grid = Grid(given, number, lambda *asked: self.on_question(*asked))
            self.grid.silent, self.grid.slow, self.grid.late = set(), set(), {}
            self.grid.change = lambda *answered: self.on_answer(*answered)
            return self.grid

        self.run = begin_run(flat, silos=make)
        self.arrays = self.run.arrays
        self.before_round: Callable[[], None] = lambda: None
        self.number = 0
        if self.replicated:
            self.replication._log = AuditLog(self.folder / "audit")

    @property
    def replicated(self) -> bool:
        return getattr(self.run.strategy, "_replication", None) is not None

    @property
    def replication(self) -> Replication:
        assert isinstance(self.run.strategy, AveragingStrategy | DfD)
        assert self.run.strategy._replication is not None
        return self.run.strategy._replication

    @property
    def last_terms(self) -> Terms:
        """Of the round that is played."""
        return self.replication.terms(self.number, self.arrays)

    def play(self) -> dict[str, Any]:
        """Play the next round; return what was measured."""
        self.number += 1
        self.before_round()
        self.arrays, metrics = self.run.strategy.run_round(self.number, self.arrays, self.run.exchange)
        return dict(metrics)

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return transport.decode_tensors(self.arrays)

    def key(self, silo: int) -> SecretKeys:
        return read_secret(self.folder / f"silo-{silo}" / "sums.key")

    def log(self) -> str:
        return (self.folder / "audit" / LOG).read_text()

    def lie(self, silo: int, answer: Message, **changes: Any) -> Message:
        """Have an aggregator sign something else than what it computed."""
        honest = AggregateAnswer.from_message(answer)
        statement, _ = Aggregate.read(honest.statement, self.replication.parties.aggregators)
        key = self.key(silo)
        signed = sign(replace(statement, **changes).payload, key, key.public.signatures)
        return answered(answer, replace(honest, statement=signed))


def answered(answer: Message, changed: AggregateAnswer) -> Message:
    """The same answer with other content."""
    made = changed.to_message(answer, changed.sender)
    made.metadata.__dict__.update(answer.metadata.__dict__)
    return made


def rewrite(question: Message, request: type[Request[Any]], change: Callable[[Any], dict[str, Any]]) -> None:
    """Change fields of a question on its way."""
    read = request.from_message(question)
    made = replace(read, **change(read)).to_message(question.metadata.dst_node_id)
    transport.pack_messages([made])
    question.content = made.content


def lost(kind: str, *silos: int) -> Callable[[str, int, Message], None]:
    """Questions of a kind do not reach these silos."""

    def hook(asked: str, silo: int, question: Message) -> None:
        if asked == kind and silo in silos:
            raise LostError

    return hook


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether two models have the same bits."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
