from __future__ import annotations

from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Message
from hand_made import bare_reply, request_to

from strategies.cooperation.questions import Asked, cut, rows_in


def reply(**metrics: Any) -> Message:
    return bare_reply(request_to(3), **metrics)


def asked(*questions: tuple[int, int | None, list[int]]) -> Asked:
    found = Asked()
    for silo, timestep, places in questions:
        found.add(silo, timestep, torch.tensor(places), ArrayRecord())
    return found


def flat(messages: list[list[tuple[int, torch.Tensor]]]) -> list[list[tuple[int, list[int]]]]:
    return [[(timestep, places.tolist()) for timestep, places in message] for message in messages]


def test_messages_hold_as_much_as_they_may_in_the_order_given() -> None:
    levels = [(999, torch.arange(5)), (749, torch.arange(5, 8)), (499, torch.tensor([], dtype=torch.int64))]
    assert flat(cut(levels, 100)) == [[(999, [0, 1, 2, 3, 4]), (749, [5, 6, 7])]]
    assert flat(cut(levels, 3)) == [[(999, [0, 1, 2])], [(999, [3, 4])], [(749, [5, 6, 7])]]
    assert flat(cut(levels, 1)) == [[(999 if place < 5 else 749, [place])] for place in range(8)]
    assert cut([(999, torch.tensor([], dtype=torch.int64))], 3) == []


@pytest.mark.parametrize("most", [256, 300, 511, 512, 700, 2000])
def test_messages_end_where_a_batch_of_the_network_does(most: int) -> None:
    messages = cut([(999, torch.arange(1000)), (749, torch.arange(1000, 1300))], most)
    for timestep, first in ((999, 0), (749, 1000)):
        pieces = [places for message in messages for t, places in message if t == timestep]
        assert all((int(places[0]) - first) % 256 == 0 for places in pieces)
    assert all(sum(len(places) for _, places in message) <= most for message in messages)
    assert torch.equal(torch.cat([places for message in messages for _, places in message]), torch.arange(1300))


@pytest.mark.parametrize(
    ("megabytes", "numbers", "dtype", "rows"),
    [(64.0, 3 * 32 * 32, "float32", 5201), (64.0, 3 * 32 * 32, "float16", 10389), (1.0, 64, "float32", 3676)],
)
def test_a_message_s_size_is_that_of_its_arrays_on_the_wire(
    megabytes: float, numbers: int, dtype: str, rows: int
) -> None:
    assert rows_in(megabytes, numbers, dtype) == rows
    size = numbers * (4 if dtype == "float32" else 2) + 8 + 8
    assert rows * size <= megabytes * 1e6 < (rows + 1) * size


def test_a_sample_larger_than_the_limit_travels_alone() -> None:
    assert rows_in(0.001, 3 * 512 * 512, "float32") == 1


def test_the_number_tells_questions_apart() -> None:
    found = asked((0, 999, [1, 2]), (0, 999, [3]), (1, 999, [1]), (0, None, [7, 8]))
    assert found.find(0, reply(question=0)).tolist() == [1, 2]
    assert found.find(0, reply(question=1, timestep=999)).tolist() == [3]
    assert found.find(0, reply(question=3)).tolist() == [7, 8]
    assert found.find(1, reply(question=2)).tolist() == [1]
    assert found.num_silos == 2


def test_an_answer_without_a_number_counts_where_there_is_no_doubt() -> None:
    found = asked((0, 999, [1, 2]), (0, 749, [3]), (1, None, [4]))
    assert found.find(0, reply(timestep=749)).tolist() == [3]
    assert found.find(1, reply()).tolist() == [4]
    assert found.find(1, reply(num_examples=1)).tolist() == [4]


@pytest.mark.parametrize(
    ("silo", "metrics", "said"),
    [
        (0, {"question": 2}, r"question = 2: asked \[0, 1\]"),
        (0, {"question": 9}, r"question = 9: asked \[0, 1\]"),
        (0, {"question": [0]}, r"question = \[0\]: asked \[0, 1\]"),
        (0, {"question": 0.5}, r"question = 0.5: asked \[0, 1\]"),
        (0, {"timestep": 999}, r"question = None: asked \[0, 1\]"),
        (0, {"timestep": 998}, r"timestep = 998: asked about \[999\]"),
        (0, {}, r"timestep = None: asked about \[999\]"),
        (2, {}, r"question = None: asked \[3, 4\]"),
        (1, {"question": 0}, r"question = 0: asked \[2\]"),
        (5, {"question": 0}, "not asked"),
        (None, {"question": 0}, "not asked"),
    ],
)
def test_an_answer_to_nothing_that_was_asked_is_refused(silo: int | None, metrics: dict[str, Any], said: str) -> None:
    found = asked((0, 999, [1, 2]), (0, 999, [3]), (1, 999, [1]), (2, None, [1]), (2, None, [2]))
    with pytest.raises(ValueError, match=said):
        found.find(silo, reply(**metrics))
