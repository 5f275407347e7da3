from __future__ import annotations

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import flwr.superlink.grid
import pytest
import torch
from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from hand_made import StubGrid, error_reply, reply, request_to

from fedsynth.errors import RunError
from fedsynth.messages import transport
from strategies.conversation import exchange as conversation
from strategies.conversation.exchange import Exchange


class ScriptedGrid(StubGrid):
    """Gives messages ids, of which it reports those in ``keep``; a pull gives what the test put into ``pulls`` next."""

    def __init__(self, keep: Callable[[list[str]], list[Any]] = lambda ids: ids) -> None:
        super().__init__([])
        self.pulls: list[list[Message]] = []
        self.num_pulls = 0
        self.keep = keep

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        sent = list(messages)
        for number, message in enumerate(sent):
            message.metadata.__dict__["_message_id"] = f"m{number}"
        self.requests += sent
        return self.keep([message.metadata.message_id for message in sent])

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self.num_pulls += 1
        return self.pulls.pop(0) if self.pulls else []


def requests_to(*nodes: int) -> list[Message]:
    messages = [request_to(node) for node in nodes]
    for message in messages:
        message.content["arrays"] = transport.encode_tensors({"x": torch.zeros(message.metadata.dst_node_id)})
    return messages


def answer(message: Message) -> Message:
    return reply(message, "arrays", {"y": torch.ones(100)}, num_examples=1)


class InMemoryGrid(ScriptedGrid):
    """Goes by the name of the grid that Flower's simulation hands to the ServerApp."""


DEAD = "<class 'ray.exceptions.ActorDiedError'>:<'The actor died unexpectedly before finishing this task.'>"


def test_answers_come_as_they_arrive_and_all_payloads_are_counted() -> None:
    grid = ScriptedGrid()
    exchange = Exchange(grid, 5.0)
    stream = exchange.send(requests_to(3, 4, 5))
    assert len(grid.requests) == 3, "before anyone asks for an answer"
    first, second, third = map(answer, grid.requests)
    grid.pulls = [[], [second], [], [first, third]]
    assert next(stream) == (1, second)
    assert grid.num_pulls == 2
    assert {index for index, _ in stream} == {0, 2}
    assert grid.num_pulls == 4
    again = exchange.send(requests_to(3))
    grid.pulls = [[error_reply(grid.requests[3], "broken")]]
    assert len(list(again)) == 1
    down, up = (sum(map(transport.payload_bytes, those)) for those in (grid.requests, (first, second, third)))
    assert (exchange.traffic.down, exchange.traffic.up, exchange.traffic.messages) == (down, up, 4)
    assert down > 4 * (3 + 4 + 5 + 3)
    assert up > 3 * 4 * 100


def test_silent_silos_are_named_when_time_is_up(caplog: pytest.LogCaptureFixture) -> None:
    grid = ScriptedGrid()
    stream = Exchange(grid, 60.0).send(requests_to(3, 44, 55), timeout=0.1)
    grid.pulls = [[answer(grid.requests[0])]]
    assert [index for index, _ in stream] == [0]
    assert "no answer in time from node-44, node-55" in caplog.text


def test_no_time_at_all_is_not_the_default_time_and_nothing_to_send_is_over_at_once() -> None:
    grid = ScriptedGrid()
    assert list(Exchange(grid, 60.0).send([])) == []
    assert grid.num_pulls == 0
    assert list(Exchange(grid, 60.0).send(requests_to(3), timeout=0.0)) == []
    assert grid.num_pulls <= 1


def test_foreign_repeated_and_late_answers_are_ignored(caplog: pytest.LogCaptureFixture) -> None:
    grid = ScriptedGrid()
    exchange = Exchange(grid, 5.0)
    stream = exchange.send(requests_to(3, 4))
    first, second = map(answer, grid.requests)
    foreign = requests_to(9)[0]
    foreign.metadata.__dict__["_message_id"] = "of another round"
    grid.pulls = [[first, answer(foreign), first], [answer(grid.requests[0])], [second]]
    assert list(stream) == [(0, first), (1, second)]
    assert exchange.traffic.up == transport.payload_bytes(first) + transport.payload_bytes(second)
    assert caplog.text == ""


def test_refused_messages_are_named_and_not_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    grid = ScriptedGrid(lambda ids: [None if number == "m1" else number for number in ids])
    stream = Exchange(grid, 1.0).send(requests_to(3, 44, 5))
    grid.pulls = [[answer(grid.requests[0]), answer(grid.requests[2])]]
    assert {index for index, _ in stream} == {0, 2}
    assert "no message could be sent to node-44" in caplog.text
    assert "no answer in time" not in caplog.text
    with pytest.raises(RunError, match="0 of 2 messages sent"):
        Exchange(ScriptedGrid(lambda ids: []), 60.0).send(requests_to(3, 4))


def test_waiting_for_silos() -> None:
    class Slow(StubGrid):
        looks = 0

        def get_node_ids(self) -> Iterable[int]:
            self.looks += 1
            return [30, 10, 20][: self.looks]

    assert Exchange(Slow([]), 1.0).wait_for_nodes(3, 5.0) == [10, 20, 30]
    assert Exchange(StubGrid([4, 2, 3]), 1.0).wait_for_nodes(2, 0.0) == [2, 3]
    said = r"1 of num-clients = 3 silos connected within node-timeout = 0\.05 s: .*num-sup"
    with pytest.raises(RunError, match=said):
        Exchange(StubGrid([8]), 1.0).wait_for_nodes(3, 0.05)


def test_the_grid_of_a_simulation_is_known_by_its_name() -> None:
    assert InMemoryGrid.__name__ == flwr.superlink.grid.InMemoryGrid.__name__
    assert issubclass(flwr.superlink.grid.InMemoryGrid, Grid)
    assert Exchange(InMemoryGrid(), 5.0).simulated
    assert not Exchange(ScriptedGrid(), 5.0).simulated


def test_a_dead_worker_of_a_simulation_ends_the_run_at_once() -> None:
    grid = InMemoryGrid()
    stream = Exchange(grid, 60.0).send(requests_to(3, 4))
    grid.pulls = [[error_reply(grid.requests[0], DEAD, ErrorCode.UNKNOWN)]]
    with pytest.raises(RunError, match=r"a simulation worker died .*ActorDiedError"):
        list(stream)


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (DEAD, ErrorCode.CLIENT_APP_RAISED_EXCEPTION),
        (f"silo-3: RuntimeError: {DEAD}", ErrorCode.UNKNOWN),
        ("<class 'ray.exceptions.RayTaskError(TypeError)'>:<'cannot pickle ActorDiedError'>", ErrorCode.UNKNOWN),
    ],
)
def test_other_errors_of_a_simulation_end_nothing(reason: str, code: int) -> None:
    grid = InMemoryGrid()
    stream = Exchange(grid, 60.0).send(requests_to(3))
    grid.pulls = [[error_reply(grid.requests[0], reason, code)]]
    assert [index for index, _ in stream] == [0]


@pytest.mark.parametrize(("grid", "late"), [(InMemoryGrid, 1.02), (ScriptedGrid, 1.15)])
@pytest.mark.parametrize("seconds", [0.5, 2.0])
def test_an_answer_is_seen_soon_after_it_is_there(
    grid: type[ScriptedGrid], late: float, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda wait: now.__setitem__(0, now[0] + wait))
    monkeypatch.setattr(conversation, "time", clock)

    class Answering(grid):  # type: ignore[valid-type, misc]
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            super().pull_messages(message_ids)
            return [answer(self.requests[0])] if now[0] >= seconds else []

    asked = Answering()
    assert len(list(Exchange(asked, 60.0).send(requests_to(3)))) == 1
    assert seconds <= now[0] <= late * seconds + conversation.SHORTEST_POLL
    assert asked.num_pulls < 300
