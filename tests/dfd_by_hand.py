"""DfD without a network: silos whose noise predictions are a formula, and rounds driven by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from hand_made import StubGrid, bare_reply, error_reply, reply

from fedsynth.config import RunConfig
from fedsynth.messages import EpsilonRequest, transport
from fedsynth.spec import ImageSpec
from strategies.base import Task
from strategies.conversation.census import Census, Member
from strategies.conversation.exchange import Exchange
from strategies.cooperation.dfd import DfD

Predict = Callable[[int, torch.Tensor, torch.Tensor | int, torch.Tensor], torch.Tensor]
"""(silo, x_t, t, labels) -> ε."""

SPEC = ImageSpec(1, 4, ("a", "b", "c"))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0])
COUNTS = [[5, 1, 0], [2, 0, 4], [1, 3, 2]]
ROUNDS = 4


def predict(silo: int, x: torch.Tensor, t: torch.Tensor | int, labels: torch.Tensor) -> torch.Tensor:
    """A smooth stand-in for a silo's network."""
    size = 0.4 + torch.as_tensor(t).reshape(-1, 1, 1, 1) / 2000
    return torch.tanh(x * (0.7 + 0.1 * silo) + labels[:, None, None, None] / 5) * size + 0.05 * silo


def census_of(counts: list[list[int]]) -> Census:
    return Census(Member(50 - k, f"silo-{k}", sum(row), row) for k, row in enumerate(counts))


def task_of(counts: list[list[int]] = COUNTS, labels: torch.Tensor = LABELS, **changes: Any) -> Task:
    given = {"num_clients": len(counts), "train_steps": 5, "screening": False, "recipe": "paper", **changes}
    config = RunConfig.from_run_config({key.replace("_", "-"): value for key, value in given.items()})
    return Task(config, SPEC, census_of(counts), labels)


def trained_at_once(message: Message) -> Message:
    curve = {"curve_steps": [5.0], "curve_losses": [0.25], "train_seconds": 1.5}
    return bare_reply(message, steps=5, loss=0.25, finished=1, **curve)


def begin(strategy: DfD, task: Task) -> ArrayRecord:
    return strategy.begin(task, Exchange(StubGrid([], trained_at_once), 5.0))


def silo_of(message: Message) -> int:
    """Position in the census of :func:`census_of` of the silo that is asked."""
    return 50 - message.metadata.dst_node_id


def answer(message: Message, silo: int, model: Predict = predict) -> Message:
    asked = EpsilonRequest.from_message(message)
    timestep = asked.timestep if asked.timesteps is None else asked.timesteps
    assert timestep is not None
    epsilon = {"e": model(silo, asked.samples, timestep, asked.labels)}
    return reply(message, "epsilon", epsilon, partition=silo, num_examples=len(asked.labels), seconds=0.5)


def by_silo(messages: list[Message]) -> dict[int, Message]:
    return {silo_of(message): message for message in messages}


def requests(strategy: DfD, number: int, arrays: ArrayRecord) -> list[Message]:
    return list(strategy.configure_train(number, arrays, ConfigRecord(), StubGrid([])))


def drive(
    strategy: DfD,
    arrays: ArrayRecord,
    first: int = 1,
    stop: int = 1000,
    absent: Callable[[int, int], bool] = lambda number, silo: False,
    answers: Callable[[Message, int], Message] = answer,
    rows: list[MetricRecord] | None = None,
) -> ArrayRecord:
    """Play rounds ``first`` to the last, or to ``stop``; silos that are absent in a round answer with an error.

    Metrics are appended to ``rows``.
    """
    number = first - 1
    while number < min(strategy.num_rounds, stop):
        number += 1
        replies = []
        for message in requests(strategy, number, arrays):
            silo = silo_of(message)
            gone = absent(number, silo)
            replies.append(error_reply(message, f"silo-{silo}: gone") if gone else answers(message, silo))
        arrays, metrics = moved(strategy, number, replies)
        if rows is not None:
            rows.append(metrics)
    return arrays


def moved(strategy: DfD, number: int, replies: list[Message]) -> tuple[ArrayRecord, MetricRecord]:
    """What a round makes of the replies to it."""
    arrays, metrics = strategy.aggregate_train(number, replies)
    assert arrays is not None
    assert metrics is not None
    return arrays, metrics


def run(strategy: DfD, task: Task) -> torch.Tensor:
    """The samples after all rounds."""
    return samples_of(drive(strategy, begin(strategy, task)))


def samples_of(arrays: ArrayRecord) -> torch.Tensor:
    return transport.decode(arrays["samples"])


def fresh(samples: torch.Tensor, labels: torch.Tensor) -> ArrayRecord:
    return transport.encode_tensors({"samples": samples, "labels": labels})
