from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from dfd_by_hand import (
    COUNTS,
    ROUNDS,
    answer,
    begin,
    by_silo,
    predict,
    requests,
    task_of,
)
from flwr.app import ArrayRecord, Message
from hand_made import error_reply, reply

from fedsynth.errors import RunError
from fedsynth.messages import wire
from strategies.cooperation.dfd import DfD


def spoiled(epsilon: torch.Tensor, how: str) -> dict[str, torch.Tensor]:
    return {
        "nan": {"e": epsilon.clone().index_fill_(0, torch.tensor([1]), torch.nan)},
        "inf": {"e": torch.full_like(epsilon, torch.inf)},
        "too large for single precision": {"e": epsilon.double() * 1e300},
        "shape": {"e": epsilon[1:]},
        "flat": {"e": epsilon.flatten()},
        "empty": {},
    }[how]


@pytest.mark.parametrize("kind", ["constant", "energy", "posterior"])
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("nan", "answer is not finite"),
        ("inf", "answer is not finite"),
        ("too large for single precision", "answer is not finite"),
        ("shape", "answer has shape (6, 1, 4, 4), not (7, 1, 4, 4)"),
        ("flat", "answer has shape (112,), not (7, 1, 4, 4)"),
        ("empty", "'epsilon' is empty"),
    ],
)
def test_unusable_answer_is_left_out_by_name(kind: str, how: str, said: str, caplog: pytest.LogCaptureFixture) -> None:
    counts = [[1, 2, 3], [4, 2, 2], [3, 3, 3]]
    task = task_of(counts, **{"min-replies": 2})
    moved = []
    for broken in (True, False):
        strategy = DfD(sampler="ddpm", dfd_rounds=ROUNDS, weights=kind)
        asked = by_silo(requests(strategy, 1, begin(strategy, task)))
        replies = [answer(asked[k], k) for k in (0, 2)]
        if broken:
            honest = wire.decode(wire.array_record(answer(asked[1], 1), wire.EPSILON_RECORD)["e"])
            replies.insert(1, reply(asked[1], wire.EPSILON_RECORD, spoiled(honest, how), partition=1))
        arrays, _ = strategy.aggregate_train(1, replies)
        assert arrays is not None
        moved.append(wire.decode(arrays[wire.SAMPLES]))
    assert torch.equal(moved[0], moved[1])
    assert f"silo-1 left out: {said}" in caplog.text


def test_answer_without_metrics_counts() -> None:
    strategy = DfD(sampler="ddpm", dfd_rounds=ROUNDS)
    asked = by_silo(requests(strategy, 1, begin(strategy, task_of())))
    replies = [answer(message, silo) for silo, message in asked.items()]
    del replies[0].content[wire.METRICS]
    arrays, metrics = strategy.aggregate_train(1, replies)
    assert arrays is not None
    assert metrics is not None
    assert metrics["client-seconds"] == pytest.approx(1.0)


@pytest.mark.parametrize("timestep", [998, 999.5, [999], [999, 749]])
def test_answer_to_another_question_is_left_out(timestep: Any, caplog: pytest.LogCaptureFixture) -> None:
    strategy = DfD(sampler="ddpm", dfd_rounds=ROUNDS)
    asked = by_silo(requests(strategy, 1, begin(strategy, task_of())))
    replies = [answer(message, silo) for silo, message in asked.items()]
    wire.metrics(replies[1])["timestep"] = timestep
    arrays, _ = strategy.aggregate_train(1, replies)
    assert arrays is not None
    assert f"silo-1 left out: timestep = {timestep}: asked about [999]" in caplog.text


def test_stranger_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    strategy = DfD(sampler="ddpm", dfd_rounds=ROUNDS)
    asked = requests(strategy, 1, begin(strategy, task_of()))
    replies = [answer(message, silo) for silo, message in by_silo(asked).items()]
    foreign = wire.request(999, wire.EPSILON, {})
    replies.append(reply(foreign, wire.EPSILON_RECORD, {"e": torch.full((7, 1, 4, 4), 9.0)}))
    arrays, _ = strategy.aggregate_train(1, replies)
    other = DfD(sampler="ddpm", dfd_rounds=ROUNDS)
    again = by_silo(requests(other, 1, begin(other, task_of())))
    expected, _ = other.aggregate_train(1, [answer(message, silo) for silo, message in again.items()])
    assert arrays is not None
    assert expected is not None
    assert arrays[wire.SAMPLES].data == expected[wire.SAMPLES].data
    assert "node-999 left out: not asked" in caplog.text


def test_nobody_answering_ends_the_run_with_the_reason() -> None:
    strategy = DfD(sampler="ddpm", dfd_rounds=ROUNDS)
    asked = by_silo(requests(strategy, 1, begin(strategy, task_of())))
    with pytest.raises(RunError, match="0 usable answers, 1 needed: silo-2: no memory"):
        strategy.aggregate_train(1, [error_reply(message, "silo-2: no memory") for message in asked.values()])


def test_fewer_answers_than_asked_for_end_the_run_with_the_reason() -> None:
    strategy = DfD(sampler="ddpm", dfd_rounds=ROUNDS)
    asked = by_silo(requests(strategy, 1, begin(strategy, task_of(**{"min-replies": 3}))))
    replies = [answer(asked[0], 0), answer(asked[1], 1), error_reply(asked[2], "silo-2: no memory")]
    with pytest.raises(RunError, match="2 usable answers, 3 needed: silo-2: no memory"):
        strategy.aggregate_train(1, replies)


def test_silos_that_hold_nothing_asked_for_are_not_waited_for() -> None:
    strategy = DfD(sampler="ddpm", dfd_rounds=ROUNDS)
    asked = by_silo(requests(strategy, 1, begin(strategy, task_of([*COUNTS, [0, 0, 0]]))))
    arrays, _ = strategy.aggregate_train(1, [answer(message, silo) for silo, message in asked.items()])
    assert arrays is not None


def test_silo_that_missed_a_level_comes_back_with_its_weight() -> None:
    def same(silo: int, x: torch.Tensor, t: int, labels: torch.Tensor) -> torch.Tensor:
        return predict(0, x, t, labels)

    strategy = DfD(sampler="ddpm", dfd_rounds=ROUNDS)
    arrays: ArrayRecord | None = begin(strategy, task_of([[1, 1, 1]] * 2, **{"min-replies": 1}))
    experts = []
    for number, present in ((1, (0, 1)), (2, (0,)), (3, (0, 1))):
        assert arrays is not None
        asked = by_silo(requests(strategy, number, arrays))
        arrays, metrics = strategy.aggregate_train(number, [answer(asked[k], k, same) for k in present])
        assert metrics is not None
        experts.append(metrics["effective-experts"])
    assert experts == pytest.approx([2.0, 1.0, 2.0])


def test_answers_are_let_go_as_they_are_read() -> None:
    strategy = DfD(sampler="ddpm", dfd_rounds=ROUNDS)
    asked = by_silo(requests(strategy, 1, begin(strategy, task_of())))

    def one_by_one() -> Iterator[Message]:
        last: weakref.ref[Message] | None = None
        for silo, message in asked.items():
            assert last is None or last() is None, "the answer before is still alive"
            fresh = answer(message, silo)
            last = weakref.ref(fresh)
            yield fresh
            del fresh

    arrays, _ = strategy.aggregate_train(1, one_by_one())
    assert arrays is not None
