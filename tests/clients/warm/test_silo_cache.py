from __future__ import annotations

from flwr.app import Context, RecordDict

from clients.warm.silo_cache import WarmCache


def context(node: int, run: int = 1) -> Context:
    return Context(run_id=run, node_id=node, node_config={}, state=RecordDict(), run_config={})


def test_things_are_made_once_for_a_silo_and_a_run() -> None:
    cache, made = WarmCache[str](), []

    def make(name: str) -> str:
        made.append(name)
        return name

    for run, node in ((1, 5), (1, 6), (1, 5), (2, 5), (1, 6)):
        assert cache.get(context(node, run), lambda r=run, n=node: make(f"{r}/{n}")) == f"{run}/{node}"  # type: ignore[misc]
    assert made == ["1/5", "1/6", "2/5"]


def test_least_recently_used_goes_first() -> None:
    cache, made = WarmCache[int](capacity=2), []
    for node in (1, 2, 1, 3, 1, 2):
        cache.get(context(node), lambda n=node: made.append(n))  # type: ignore[misc]
    assert made == [1, 2, 3, 2]


def test_what_could_not_be_made_is_tried_again() -> None:
    cache = WarmCache[int]()

    def fail() -> int:
        raise OSError

    for make in (fail, lambda: 7):
        try:
            got = cache.get(context(1), make)
        except OSError:
            got = None
    assert got == 7
