from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from flwr.app import Message
from hand_made import StubGrid, bare_reply, error_reply

from fedsynth.config import RunConfig
from fedsynth.errors import RunError
from fedsynth.messages import PrepareRequest
from fedsynth.spec import ImageSpec
from strategies.base import Task
from strategies.conversation.ask import Quorum
from strategies.conversation.census import Census, Member
from strategies.conversation.exchange import Exchange
from strategies.own_models.local_training import train_local_models

SPEC = ImageSpec(3, 16, ("cat", "dog", "emu"))


def train_with(
    respond: Callable[[Message], Message], count: int = 2, auto: Quorum = "all", min_replies: int | str = "auto"
) -> tuple[Census, StubGrid, set[int]]:
    census = Census(Member(40 + k, f"silo-{k}", 3, [1, 1, 1]) for k in range(count))
    config = RunConfig.from_run_config({"train-steps": 10, "min-replies": min_replies})
    grid = StubGrid([], respond)
    ready = train_local_models(Exchange(grid, 5.0), Task(config, SPEC, census, torch.zeros(1)), auto)
    return census, grid, ready


def done(message: Message, k: int) -> Message:
    curve = {"curve_steps": [5.0, 10.0], "curve_losses": [0.9, 0.5 - k], "train_seconds": 3.0 + k}
    return bare_reply(message, {"partition-id": k}, steps=10, loss=0.5, finished=1, **curve)


def under_way(message: Message, steps: int) -> Message:
    return bare_reply(message, {"partition-id": message.metadata.dst_node_id - 40}, steps=steps, loss=0.7, finished=0)


class Silos:
    """Silos that take as many steps in a slice, by node id, until they have taken ten."""

    def __init__(self, pace: dict[int, int]) -> None:
        self.pace, self.steps = pace, dict.fromkeys(pace, 0)

    def __call__(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        self.steps[node] += self.pace[node]
        return done(message, node - 40) if self.steps[node] >= 10 else under_way(message, self.steps[node])


def test_slices_go_on_until_every_silo_has_finished() -> None:
    census, grid, ready = train_with(Silos({40: 3, 41: 7}))
    assert ready == {0, 1}
    assert [message.metadata.dst_node_id for message in grid.requests] == [40, 41, 40, 41, 40, 40]
    assert {PrepareRequest.from_message(message).train_seconds for message in grid.requests} == {15.0}
    assert census.members[1].curve == [(5, 0.9), (10, -0.5)]
    assert [member.train_seconds for member in census] == [3.0, 4.0]


def test_silo_may_end_its_training_before_the_budget() -> None:
    def respond(message: Message) -> Message:
        curve = {"curve_steps": [3.0, 6.0], "curve_losses": [0.9, 0.5], "train_seconds": 1.0}
        return bare_reply(message, {"partition-id": 0}, steps=6, loss=0.5, finished=1, **curve)

    census, grid, _ = train_with(respond, 1)
    assert len(grid.requests) == 1
    assert census.members[0].curve == [(3, 0.9), (6, 0.5)]
    assert census.members[0].copied_share is None


@pytest.mark.parametrize(("share", "warned"), [(0.4, False), (0.41, True)])
def test_silo_whose_model_copies_is_named(share: float, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    def respond(message: Message) -> Message:
        answer = done(message, message.metadata.dst_node_id - 40)
        answer.content["metrics"]["copied-share"] = share  # type: ignore[index]
        return answer

    census, _, _ = train_with(respond, 2)
    assert [member.copied_share for member in census] == [share, share]
    said = f"silo-1: {100 * share:.0f} % of its model's samples are near-copies of its training images"
    assert (said in caplog.text) == warned
    assert ("more images or fewer steps would help" in caplog.text) == warned


def test_silo_that_gets_nowhere_ends_the_run() -> None:
    def respond(message: Message) -> Message:
        if message.metadata.dst_node_id == 40:
            return done(message, 0)
        return under_way(message, 4)

    with pytest.raises(RunError, match="silo-1: stands at step 4 after another slice: is its state folder kept"):
        train_with(respond)


def test_a_silo_that_never_finishes_does_not_keep_the_run_waiting_for_ever() -> None:
    endless = {40: 2, 41: 10}
    steps = dict.fromkeys(endless, 0)

    def respond(message: Message) -> Message:
        node = message.metadata.dst_node_id
        steps[node] += endless[node]
        return done(message, 1) if node == 41 else under_way(message, steps[node])

    _, grid, ready = train_with(respond, min_replies=1)
    assert ready == {1}
    assert len(grid.requests) == 6, "five slices of two steps, where ten are asked for"
    steps[40] = 0
    with pytest.raises(RunError, match="silo-0: claims 10 of 10 steps, and an unfinished model"):
        train_with(respond)


def test_malformed_progress_ends_the_run_by_name() -> None:
    with pytest.raises(RunError, match="0 usable answers, 1 needed: silo-0: a finished model without"):
        train_with(lambda message: bare_reply(message, finished=1), 1)


def test_lost_silo_is_named_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    def respond(message: Message) -> Message:
        if message.metadata.dst_node_id == 41 and silos.steps[40]:
            return error_reply(message, "silo-1: OSError: no space left")
        return silos(message)

    silos = Silos(dict.fromkeys((40, 41, 42), 4))
    census, grid, ready = train_with(respond, 3, min_replies=2)
    assert [message.metadata.dst_node_id for message in grid.requests] == [40, 41, 42, 40, 42, 40, 42]
    assert ready == {0, 2}
    assert [bool(member.curve) for member in census] == [True, False, True]
    assert "silo-1: OSError: no space left" in caplog.text
    silos = Silos(silos.pace)
    with pytest.raises(RunError, match="2 usable answers, 3 needed: silo-1: OSError: no space left"):
        train_with(respond, 3)


def test_silo_that_is_lost_after_others_have_finished_is_counted_with_them() -> None:
    def respond(message: Message) -> Message:
        node = message.metadata.dst_node_id
        if node == 40:
            return done(message, 0)
        if node == 41 and len(told) < 2:
            told.append(node)
            return under_way(message, len(told))
        return error_reply(message, "silo-1: gone")

    told: list[int] = []
    _, grid, ready = train_with(respond, auto="one")
    assert len(grid.requests) == 4
    assert ready == {0}
    told.clear()
    with pytest.raises(RunError, match="0 usable answers, 1 needed: silo-1: gone"):
        train_with(respond)
