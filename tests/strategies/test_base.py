from __future__ import annotations

import pytest
import torch
from flwr.app import ArrayRecord
from hand_made import StubGrid, error_reply

from fedsynth.config import RunConfig
from fedsynth.errors import RunError
from fedsynth.spec import ImageSpec
from strategies import STRATEGIES
from strategies.base import Task
from strategies.conversation.census import Census
from strategies.conversation.exchange import Exchange

SPEC = ImageSpec(1, 8, ("a", "b"))


def task_of(**keys: int | str) -> Task:
    given = {"block-out-channels": "8,8", **{key.replace("_", "-"): value for key, value in keys.items()}}
    return Task(RunConfig.from_run_config(given), SPEC, Census.unknown(range(5), 2), torch.zeros(1))


@pytest.mark.parametrize(("name", "needed"), [("fedavg", 3), ("pooled", 5)])
def test_a_round_needs_as_many_silos_as_the_method_unless_told_otherwise(name: str, needed: int) -> None:
    strategy = STRATEGIES[name]()
    assert strategy.replies_needed(5) == 0, "nobody has begun a run"
    strategy._task = task_of()
    assert strategy.replies_needed(5) == needed
    strategy._task = task_of(min_replies=4)
    assert (strategy.replies_needed(5), strategy.replies_needed(2)) == (4, 2)


def test_every_method_says_what_the_silos_did() -> None:
    assert all(chosen.how and not chosen.how.endswith(".") for chosen in STRATEGIES.values())


@pytest.mark.parametrize("name", ["pooled", "local", "centralised"])
def test_a_round_that_needs_what_begin_learns_says_so(name: str) -> None:
    with pytest.raises(RunError, match="call begin first"):
        STRATEGIES[name]().run_round(1, ArrayRecord(), Exchange(StubGrid([]), 5.0))


def test_there_are_no_silos_before_anybody_was_asked() -> None:
    with pytest.raises(RunError, match="FedAvg knows no silos yet: call begin or configure_train first"):
        _ = STRATEGIES["fedavg"]().census


def test_a_round_without_any_usable_answer_ends_the_run_even_if_none_is_needed() -> None:
    strategy, exchange = STRATEGIES["fedavg"](), Exchange(StubGrid([3, 4], lambda m: error_reply(m, "gone")), 5.0)
    with pytest.raises(RunError, match="round 1: no usable answer"):
        strategy.run_round(1, ArrayRecord(), exchange)
