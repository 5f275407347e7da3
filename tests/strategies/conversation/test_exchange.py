from __future__ import annotations

import time
import weakref
from collections.abc import Iterable

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from hand_made import StubGrid, error_reply, reply, request_to
from strategies.conversation.replies import usable

from fedsynth.errors import RunError
from fedsynth.messages import wire
from strategies.conversation.exchange import ExchangeGrid
from strategies.run.rounds import Round, RoundsState, run_rounds


class ScriptedGrid(StubGrid):
    """Accepts every message under a number of its own; each pull gives what the test put into ``pulls`` next."""

    def __init__(self) -> None:
        super().__init__([])
        self.pulls: list[list[Message]] = []
        self.num_pulls = 0

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        sent = list(messages)
        for number, message in enumerate(sent):
            message.metadata.__dict__["_message_id"] = f"m{number}"
        self.requests += sent
        return [message.metadata.message_id for message in sent]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self.num_pulls += 1
        return self.pulls.pop(0) if self.pulls else []


def requests_to(*nodes: int) -> list[Message]:
    return [request_to(node, arrays=wire.encode_tensors({"x": torch.zeros(node)})) for node in nodes]


def answer(message: Message) -> Message:
    return reply(message, wire.ARRAYS, {"y": torch.ones(100)}, num_examples=1)


def nodes_of(replies: Iterable[Message]) -> list[int]:
    return [reply.metadata.src_node_id for reply in replies]


def test_answers_come_as_they_arrive() -> None:
    grid, exchange = ScriptedGrid(), None
    exchange = ExchangeGrid(grid, 5.0)
    stream = exchange.send_and_receive(requests_to(3, 4, 5))
    first, second, third = map(answer, grid.requests)
    grid.pulls = [[], [second], [], [first, third]]
    assert next(stream) is second
    assert grid.num_pulls == 2
    assert set(nodes_of(stream)) == {3, 5}
    assert grid.num_pulls == 4


def test_messages_are_sent_before_anyone_asks_for_an_answer() -> None:
    grid = ScriptedGrid()
    ExchangeGrid(grid, 5.0).send_and_receive(requests_to(3, 4))
    assert len(grid.requests) == 2


def test_silent_silos_are_named_when_time_is_up(caplog: pytest.LogCaptureFixture) -> None:
    grid = ScriptedGrid()
    stream = ExchangeGrid(grid, 60.0).send_and_receive(requests_to(3, 44, 55), timeout=0.1)
    grid.pulls = [[answer(grid.requests[0])]]
    start = time.monotonic()
    assert nodes_of(stream) == [3]
    assert 0.05 < time.monotonic() - start < 5
    assert "no answer in time from node-44, node-55" in caplog.text


def test_no_time_at_all_is_not_the_default_time() -> None:
    start = time.monotonic()
    assert list(ExchangeGrid(ScriptedGrid(), 60.0).send_and_receive(requests_to(3), timeout=0.0)) == []
    assert time.monotonic() - start < 5


def test_foreign_repeated_and_late_answers_are_ignored(caplog: pytest.LogCaptureFixture) -> None:
    grid = ScriptedGrid()
    exchange = ExchangeGrid(grid, 5.0)
    stream = exchange.send_and_receive(requests_to(3, 4))
    first, second = map(answer, grid.requests)
    foreign = requests_to(9)[0]
    foreign.metadata.__dict__["_message_id"] = "of another round"
    grid.pulls = [[first, answer(foreign), first], [answer(grid.requests[0])], [second]]
    assert list(stream) == [first, second]
    assert exchange.traffic.up == wire.payload_bytes(first) + wire.payload_bytes(second)
    assert caplog.text == ""


def test_traffic_is_the_sum_of_payloads_over_all_rounds() -> None:
    grid = ScriptedGrid()
    exchange = ExchangeGrid(grid, 5.0)
    down = up = 0
    for _ in range(2):
        stream = exchange.send_and_receive(requests_to(3, 4))
        sent = grid.requests[-2:]
        replies = [answer(sent[0]), error_reply(sent[1], "broken")]
        grid.pulls = [replies]
        assert len(list(stream)) == 2
        down += sum(map(wire.payload_bytes, sent))
        up += wire.payload_bytes(replies[0])
    assert (exchange.traffic.down, exchange.traffic.up, exchange.traffic.messages) == (down, up, 4)
    assert down > 2 * 4 * (3 + 4)
    assert up > 2 * 4 * 100


def test_nothing_to_send_is_over_at_once() -> None:
    grid = ScriptedGrid()
    assert list(ExchangeGrid(grid, 60.0).send_and_receive([])) == []
    assert grid.num_pulls == 0


class Forgetful(ScriptedGrid):
    """Makes each answer only when it is pulled, and checks that the one before is gone by then."""

    last: weakref.ref[Message] | None = None

    def __init__(self, count: int) -> None:
        super().__init__()
        self.left = count

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        if self.last is not None:
            assert self.last() is None, "the answer before is still alive"
        if not self.left:
            return []
        self.left -= 1
        fresh = answer(self.requests[self.left])
        self.last = weakref.ref(fresh)
        return [fresh]


def test_no_answer_is_kept_alive() -> None:
    grid = Forgetful(4)
    stream = ExchangeGrid(grid, 5.0).send_and_receive(requests_to(3, 4, 5, 6))
    for _ in range(4):
        next(stream)
    assert list(stream) == []
    assert grid.last is not None


def test_refused_messages_are_named_and_not_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    class Refusing(ScriptedGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            return [None if number == "m1" else number for number in super().push_messages(messages)]  # type: ignore[misc]

    grid = Refusing()
    stream = ExchangeGrid(grid, 60.0).send_and_receive(requests_to(3, 44, 5))
    grid.pulls = [[answer(grid.requests[0]), answer(grid.requests[2])]]
    assert set(nodes_of(stream)) == {3, 5}
    assert "no message could be sent to node-44" in caplog.text


def test_messages_that_could_not_be_sent_at_all_end_the_run() -> None:
    class Full(ScriptedGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            return []

    with pytest.raises(RunError, match="0 of 2 messages sent"):
        ExchangeGrid(Full(), 60.0).send_and_receive(requests_to(3, 4))


def test_waiting_for_silos() -> None:
    class Slow(StubGrid):
        looks = 0

        def get_node_ids(self) -> Iterable[int]:
            self.looks += 1
            return [30, 10, 20][: self.looks]

    assert ExchangeGrid(Slow([]), 1.0).wait_for_nodes(3, 5.0) == [10, 20, 30]
    assert ExchangeGrid(StubGrid([4, 2, 3]), 1.0).wait_for_nodes(2, 0.0) == [2, 3]


def test_missing_silos_are_counted_and_the_keys_named() -> None:
    with pytest.raises(
        RunError, match=r"1 of num-clients = 3 silos connected within node-timeout = 0\.05 s: .*num-sup"
    ):
        ExchangeGrid(StubGrid([8]), 1.0).wait_for_nodes(3, 0.05)


def test_everything_else_is_the_wrapped_grid_s() -> None:
    grid = ScriptedGrid()
    grid.nodes = [1, 2]
    exchange = ExchangeGrid(grid, 1.0)
    assert list(exchange.get_node_ids()) == [1, 2]
    assert list(exchange.push_messages(requests_to(1))) == ["m0"]
    grid.pulls = [[answer(grid.requests[0])]]
    assert nodes_of(exchange.pull_messages(["m0"])) == [1]
    assert exchange.traffic.messages == 0


class Counting:
    """A strategy whose array holds the sum of the round numbers it has seen."""

    def __init__(self, num_rounds: int, last: int = 99) -> None:
        self.num_rounds, self.last, self.seen = num_rounds, last, list[tuple[int, float]]()
        self.patience: float | None = None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: object
    ) -> Iterable[Message]:
        self.total = float(wire.decode(arrays["sum"]))
        self.seen.append((server_round, wire.number(config, "factor")))
        return []

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        assert list(replies) == []
        if server_round > self.last:
            return None, None
        metrics = MetricRecord({"total": self.total + server_round}) if server_round % 2 else None
        return wire.encode_tensors({"sum": torch.tensor(self.total + server_round)}), metrics


def state(observers: Iterable[object] = ()) -> RoundsState:
    start = wire.encode_tensors({"sum": torch.tensor(0.0)})
    return RoundsState(start, ConfigRecord({"factor": 2.0}), list(observers))  # type: ignore[arg-type]


@pytest.mark.parametrize(("first", "total"), [(1, 15.0), (3, 12.0), (6, 0.0)])
def test_rounds_run_from_the_first_asked_for_to_the_last(first: int, total: float) -> None:
    strategy, rounds = Counting(5), state()
    arrays = run_rounds(strategy, StubGrid([], answer), rounds, first)
    assert float(wire.decode(arrays["sum"])) == total
    assert rounds.arrays is arrays
    assert strategy.seen == [(number, 2.0) for number in range(first, 6)]


def test_a_round_may_ask_for_further_ones() -> None:
    class Longer(Counting):
        def aggregate_train(
            self, server_round: int, replies: Iterable[Message]
        ) -> tuple[ArrayRecord | None, MetricRecord | None]:
            self.num_rounds = {2: 4, 4: 3}.get(server_round, self.num_rounds)
            return super().aggregate_train(server_round, replies)

    strategy = Longer(2)
    run_rounds(strategy, StubGrid([], answer), state())
    assert [number for number, _ in strategy.seen] == [1, 2, 3, 4]


def test_observers_see_every_round_in_turn() -> None:
    seen: list[tuple[str, int, dict[str, object], float]] = []

    def watch(name: str) -> object:
        def observe(done: Round) -> None:
            assert done.seconds >= 0
            seen.append((name, done.number, dict(done.metrics), float(wire.decode(done.arrays["sum"]))))

        return observe

    run_rounds(Counting(2), StubGrid([], answer), state([watch("a"), watch("b")]))
    assert seen == [
        ("a", 1, {"total": 1.0}, 1.0),
        ("b", 1, {"total": 1.0}, 1.0),
        ("a", 2, {}, 3.0),
        ("b", 2, {}, 3.0),
    ]


def test_round_without_result_ends_the_run_and_leaves_the_state_before_it() -> None:
    rounds = state()
    with pytest.raises(RunError, match="round 3: no usable answer"):
        run_rounds(Counting(5, last=2), StubGrid([], answer), rounds)
    assert float(wire.decode(rounds.arrays["sum"])) == 3.0


def test_filtering_keeps_no_answer_alive_either() -> None:
    grid = Forgetful(4)
    stream = usable(ExchangeGrid(grid, 5.0).send_and_receive(requests_to(3, 4, 5, 6)), 4)
    for _ in range(4):
        next(stream)
    assert list(stream) == []
