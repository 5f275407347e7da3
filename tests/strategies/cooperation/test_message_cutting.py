from __future__ import annotations

import pytest
import torch

from fedsynth.message_size import rows_in
from strategies.cooperation.message_cutting import cut


def flat(messages: list[list[tuple[int, torch.Tensor]]]) -> list[list[tuple[int, list[int]]]]:
    return [[(timestep, places.tolist()) for timestep, places in message] for message in messages]


def test_messages_hold_as_much_as_they_may_in_the_order_given() -> None:
    levels = [(999, torch.arange(5)), (749, torch.arange(5, 8)), (499, torch.tensor([], dtype=torch.int64))]
    assert flat(cut(levels, 100)) == [[(999, [0, 1, 2, 3, 4]), (749, [5, 6, 7])]]
    assert flat(cut(levels, 3)) == [[(999, [0, 1, 2])], [(999, [3, 4])], [(749, [5, 6, 7])]]
    assert flat(cut(levels, 1)) == [[(999 if place < 5 else 749, [place])] for place in range(8)]
    assert cut([(999, torch.tensor([], dtype=torch.int64))], 3) == []


@pytest.mark.parametrize("most", [256, 300, 700])
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
