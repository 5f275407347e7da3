"""Work on one thread, and independent pieces of it side by side: fast alone, and never slow beside other programs.

Torch's threads wait for each other by spinning: for small networks, where every operation is short, a core that another
program holds makes the whole many times slower. Threads with a piece of work each wait for nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch to one thread, for work where several would mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def side_by_side(work: Callable[[T], R], pieces: Sequence[T]) -> list[R]:
    """Return ``work`` of every piece, in order, as many at a time as torch has threads, each on one thread.

    The results are those of one thread alone, whatever the number of cores. ``work`` must be safe beside itself: it
    draws nothing from a global generator and changes nothing that another piece reads. Torch's modes, such as
    ``inference_mode``, hold for one thread: ``work`` enters them itself.
    """
    workers = min(len(pieces), torch.get_num_threads())
    with one_thread(), threadpool_limits(1, user_api="blas"):
        if workers <= 1:
            return [work(piece) for piece in pieces]
        # A new thread begins with OpenMP's own number of threads.
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(work, pieces))
