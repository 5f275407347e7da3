from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message
from hand_made import StubGrid, bare_reply, error_reply, reply

from fedsynth.config import RunConfig
from fedsynth.errors import RunError, UserError
from fedsynth.messages import wire
from fedsynth.spec import ImageSpec
from strategies.base import Task
from strategies.conversation.census import Census, Member
from strategies.own_models.pooled import Pooled

SPEC = ImageSpec(1, 2, ("a", "b"))
COUNTS = [[30, 10], [10, 0], [0, 30]]
LABELS = torch.arange(4000) % 2


def task_of(counts: list[list[int]] = COUNTS, labels: torch.Tensor = LABELS, **changes: Any) -> Task:
    census = Census(Member(50 - k, f"silo-{k}", sum(row), row) for k, row in enumerate(counts))
    return Task(RunConfig.from_run_config({"strategy": "pooled", **changes}), SPEC, census, labels)


def trained_at_once(message: Message) -> Message:
    return bare_reply(message, finished=1, loss=0.5, curve_steps=[9.0], curve_losses=[0.5], train_seconds=0.0)


def begun(task: Task, **hyper: str) -> tuple[Pooled, ArrayRecord, dict[int, Message]]:
    strategy = Pooled(**hyper)
    arrays = strategy.begin(task, StubGrid([], trained_at_once))
    requests = list(strategy.configure_train(1, arrays, ConfigRecord({"key": 1}), StubGrid([])))
    return strategy, arrays, {50 - message.metadata.dst_node_id: message for message in requests}


def answer(message: Message, silo: int) -> Message:
    numbers = wire.decode_tensors(wire.array_record(message, wire.ARRAYS))[wire.NUMBERS]
    images = (numbers % 251).to(torch.uint8)[:, None, None, None].expand(-1, 2, 2, 1).contiguous()
    tensors = {wire.IMAGES: images, wire.NUMBERS: numbers}
    return reply(message, wire.ARRAYS, tensors, partition=silo, num_examples=len(images), seconds=2.0)


def test_shares_are_the_prior_and_every_image_has_one_owner() -> None:
    _, _, requests = begun(task_of())
    sent = {silo: wire.decode_tensors(wire.array_record(m, wire.ARRAYS)) for silo, m in requests.items()}
    assert sorted(torch.cat([part[wire.NUMBERS] for part in sent.values()]).tolist()) == list(range(len(LABELS)))
    shares = np.zeros((3, 2))
    for silo, part in sent.items():
        assert torch.equal(part[wire.LABELS], LABELS[part[wire.NUMBERS]])
        shares[silo] = np.bincount(part[wire.LABELS], minlength=2) / 2000
    counts = np.array(COUNTS)
    # Four standard deviations of a share of 2000 draws.
    np.testing.assert_allclose(shares, counts / counts.sum(0), atol=4 * np.sqrt(0.25 / 2000))
    assert shares[1, 1] == shares[2, 0] == 0


def test_owners_follow_the_seed() -> None:
    numbers = []
    for seed in (0, 0, 1):
        _, _, requests = begun(task_of(seed=seed))
        numbers.append(wire.decode(wire.array_record(requests[0], wire.ARRAYS)[wire.NUMBERS]).tolist())
    assert numbers[0] == numbers[1]
    assert numbers[0] != numbers[2]


def test_images_land_in_their_places_in_any_order_of_answers() -> None:
    results = []
    for backwards in (False, True):
        task = task_of()
        strategy, _, requests = begun(task)
        replies = [answer(message, silo) for silo, message in requests.items()]
        arrays, metrics = strategy.aggregate_train(1, replies[::-1] if backwards else replies)
        assert arrays is not None
        outcome = strategy.finish(task, arrays)
        np.testing.assert_array_equal(outcome.images[:, 1, 1, 0], np.arange(len(LABELS)) % 251)
        np.testing.assert_array_equal(outcome.labels, LABELS.numpy())
        assert outcome.curves["silo-2"] == [(9, 0.5)]
        results.append(outcome.images)
        assert metrics == {"silos": 3, "client-seconds": 6.0}
    np.testing.assert_array_equal(*results)


def test_missing_share_ends_the_run() -> None:
    strategy, _, requests = begun(task_of(**{"min-replies": 1}))
    replies = [answer(requests[0], 0), answer(requests[2], 2), error_reply(requests[1], "silo-1: gone")]
    with pytest.raises(RunError, match="2 usable answers, 3 needed: silo-1: gone"):
        strategy.aggregate_train(1, replies)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (
            {wire.IMAGES: torch.zeros(3, 2, 2, 1, dtype=torch.uint8)},
            r"images are torch.uint8 \(3, 2, 2, 1\), not uint8",
        ),
        ({wire.IMAGES: torch.zeros(2000, 2, 2, 1)}, "images are torch.float32"),
        ({}, "'images'"),
    ],
)
def test_unusable_share_ends_the_run_by_name(tensors: dict[str, torch.Tensor], said: str) -> None:
    strategy, _, requests = begun(task_of())
    with pytest.raises(RunError, match=f"silo-2: unusable answer: {said}"):
        strategy.aggregate_train(1, [reply(requests[2], wire.ARRAYS, tensors, partition=2)])


def test_silo_without_a_share_is_not_asked() -> None:
    _, _, requests = begun(task_of(labels=torch.ones(10, dtype=torch.int64)))
    assert 1 not in requests


def test_class_that_nobody_holds_is_refused_before_any_silo_trains() -> None:
    grid = StubGrid([], trained_at_once)
    with pytest.raises(UserError, match=r"no silo holds images of class index \[1\]"):
        Pooled().begin(task_of([[3, 0], [5, 0]]), grid)
    assert grid.requests == []


def test_round_without_begin_says_so() -> None:
    with pytest.raises(RunError, match="call begin first"):
        Pooled().configure_train(1, ArrayRecord(), ConfigRecord(), StubGrid([]))
