from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

from fedsynth.threads import one_thread, side_by_side


@pytest.fixture(autouse=True)
def three_threads():
    given = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(given)


def blas_threads() -> set[int]:
    np.ones((2, 2)) @ np.ones((2, 2))
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_their_number_is_given_back():
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3


def test_as_many_pieces_at_once_as_threads_each_on_one_and_answers_in_order():
    together = threading.Barrier(3, timeout=20)

    def work(piece: int) -> tuple[int, int, set[int]]:
        together.wait()
        return piece, torch.get_num_threads(), blas_threads()

    assert side_by_side(work, range(6)) == [(piece, 1, {1}) for piece in range(6)]
    assert torch.get_num_threads() == 3


def test_one_piece_and_none_work_in_the_thread_that_asks():
    here = threading.get_ident()
    assert side_by_side(lambda _: (threading.get_ident(), torch.get_num_threads()), "a") == [(here, 1)]
    assert side_by_side(lambda _: 0, "") == []


def test_an_error_of_a_piece_is_raised():
    with pytest.raises(ZeroDivisionError):
        side_by_side(lambda piece: 1 // piece, [1, 0])
    assert torch.get_num_threads() == 3
