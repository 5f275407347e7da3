"""DfD without a network: silos whose noise predictions are a formula, and rounds driven by hand."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message
from hand_made import StubGrid, bare_reply, error_reply, reply

from fedsynth.config import RunConfig
from fedsynth.messages import wire
from fedsynth.spec import ImageSpec
from strategies.base import Task
from strategies.conversation.census import Census, Member
from strategies.cooperation.dfd import DfD

Predict = Callable[[int, torch.Tensor, int, torch.Tensor], torch.Tensor]
"""(silo, x_t, t, labels) -> ε."""

SPEC = ImageSpec(1, 4, ("a", "b", "c"))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0])
COUNTS = [[5, 1, 0], [2, 0, 4], [1, 3, 2]]
ROUNDS = 4


def predict(silo: int, x: torch.Tensor, t: int, labels: torch.Tensor) -> torch.Tensor:
    """A smooth stand-in for a silo's network."""
    return torch.tanh(x * (0.7 + 0.1 * silo) + labels[:, None, None, None] / 5) * (0.4 + t / 2000) + 0.05 * silo


def census_of(counts: list[list[int]]) -> Census:
    return Census(Member(50 - k, f"silo-{k}", sum(row), row) for k, row in enumerate(counts))


def task_of(counts: list[list[int]] = COUNTS, **changes: Any) -> Task:
    config = RunConfig.from_run_config({"num-clients": len(counts), "train-steps": 5, "screening": False, **changes})
    return Task(config, SPEC, census_of(counts), LABELS)


def trained_at_once(message: Message) -> Message:
    curve = {"curve_steps": [5.0], "curve_losses": [0.25], "train_seconds": 1.5}
    return bare_reply(message, steps=5, loss=0.25, finished=1, **curve)


def begin(strategy: DfD, task: Task) -> ArrayRecord:
    return strategy.begin(task, StubGrid([], trained_at_once))


def answer(message: Message, silo: int, model: Predict = predict, seconds: float = 0.5) -> Message:
    tensors = wire.decode_tensors(wire.array_record(message, wire.ARRAYS))
    t = int(message.content.config_records[wire.CONFIG]["timestep"])
    samples, labels = tensors[wire.SAMPLES], tensors[wire.LABELS]
    epsilon = model(silo, samples, t, labels)
    return reply(message, wire.EPSILON_RECORD, {"e": epsilon}, partition=silo, num_examples=1, seconds=seconds)


def by_silo(messages: list[Message]) -> dict[int, Message]:
    """Requests by position in the census of :func:`census_of`."""
    return {50 - message.metadata.dst_node_id: message for message in messages}


def requests(strategy: DfD, number: int, arrays: ArrayRecord, grid: StubGrid | None = None) -> list[Message]:
    return list(strategy.configure_train(number, arrays, ConfigRecord(), grid or StubGrid([])))


def run(strategy: DfD, task: Task, model: Predict = predict, shuffle: bool = False) -> torch.Tensor:
    arrays: ArrayRecord | None = begin(strategy, task)
    for number in range(1, strategy.num_rounds + 1):
        assert arrays is not None
        asked = by_silo(requests(strategy, number, arrays))
        replies = [answer(message, silo, model) for silo, message in asked.items()]
        if shuffle:
            random.Random(number).shuffle(replies)
        arrays, _ = strategy.aggregate_train(number, replies)
    assert arrays is not None
    return wire.decode(arrays[wire.SAMPLES])


def drive(
    strategy: DfD,
    arrays: ArrayRecord,
    first: int = 1,
    stop: int = 1000,
    absent: Callable[[int, int], bool] = lambda number, silo: False,
    model: Predict = predict,
) -> ArrayRecord:
    """Play rounds ``first`` to the last, or to ``stop``; silos that are absent in a round answer with an error."""
    number = first - 1
    while number < min(strategy.num_rounds, stop):
        number += 1
        replies = []
        for message in requests(strategy, number, arrays):
            silo = 50 - message.metadata.dst_node_id
            if absent(number, silo):
                replies.append(error_reply(message, f"silo-{silo}: gone"))
                continue
            replies.append(answer(message, silo, model))
            replies[-1].content[wire.METRICS]["timestep"] = message.content.config_records[wire.CONFIG]["timestep"]
        moved, _ = strategy.aggregate_train(number, replies)
        assert moved is not None
        arrays = moved
    return arrays


def fresh(samples: torch.Tensor, labels: torch.Tensor) -> ArrayRecord:
    return wire.encode_tensors({wire.SAMPLES: samples, wire.LABELS: labels})
