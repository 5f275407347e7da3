from __future__ import annotations

import pytest

from clients.silo_cache import SiloCache


def test_items_are_made_once_for_a_silo_and_a_run() -> None:
    cache, made = SiloCache[int](), []
    for key in ((1, 5), (1, 6), (1, 5), (2, 5), (1, 6)):
        cache.get(key, lambda key=key: made.append(key))  # type: ignore[misc]
    assert made == [(1, 5), (1, 6), (2, 5)]


def test_least_recently_used_goes_first() -> None:
    cache, made = SiloCache[int](capacity=2), []
    for node in (1, 2, 1, 3, 1, 2):
        cache.get((1, node), lambda n=node: made.append(n))  # type: ignore[misc]
    assert made == [1, 2, 3, 2]


def test_what_could_not_be_made_is_tried_again() -> None:
    def fail() -> int:
        raise OSError

    cache = SiloCache[int]()
    with pytest.raises(OSError, match=r"^$"):
        cache.get((1, 1), fail)
    assert cache.get((1, 1), lambda: 7) == 7
