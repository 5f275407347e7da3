"""What a process keeps in memory between messages."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class SiloCache(Generic[T]):
    """One item per silo that this process has served, least recently used first out.

    Keyed by run and node, because one Ray actor serves many silos and outlives none of their runs.

    Args:
        capacity: silos kept.
    """

    def __init__(self, capacity: int = 16) -> None:
        self._capacity = capacity
        self._items: OrderedDict[tuple[int, int], T] = OrderedDict()

    def get(self, key: tuple[int, int], make: Callable[[], T]) -> T:
        """Return the item of a silo, see :attr:`clients.context.SiloContext.run_and_node`; made on first use."""
        if key not in self._items:
            self._items[key] = make()
        self._items.move_to_end(key)
        while len(self._items) > self._capacity:
            self._items.popitem(last=False)
        return self._items[key]
