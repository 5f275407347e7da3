"""The runtime API is a real SuperNode's, on a port of this machine."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import uvicorn
from flower_waits import comes_at_look, recorded_waits
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, no_object_id_recompute
from flwr.supercore.inflatable.inflatable_utils import pull_objects
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run, RunNotRunningException
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.main import create_app
from flwr.supernode.nodestate import NodeState, NodeStateFactory
from flwr.supernode.start_client_internal import _insert_message, _pull_and_store_message, _push_messages

from clients.warm import flower_internals
from clients.warm.flower_internals import (
    Job,
    PollingClock,
    SuperNodeGoneError,
    SuperNodeRuntime,
    answering_in_turn,
    forgetting_ended_runs,
)

RUN, NODE, SECRET = 7, 11, b"a secret of this silo"
FAB_HASH = hashlib.sha256(b"bundle").hexdigest()


@dataclass
class SuperNode:
    """The runtime API of a SuperNode and the state behind it."""

    address: str
    state: NodeState

    def message(self, word: str) -> Message:
        """A message as the ServerApp writes it."""
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN, 1, 1
        return Message(RecordDict({"config": ConfigRecord({"word": word})}), dst_node_id=NODE, message_type="query")

    def receive(self, word: str) -> None:
        """What the SuperNode does when a message comes."""
        _insert_message(self.message(word), self.state, self.state.object_store)
        self.state.create_task(task_type=TaskType.CLIENT_APP, run_id=RUN, fab_hash=FAB_HASH)

    def on_its_way(self, word: str) -> tuple[Message, dict[str, Any]]:
        """A message that the link has for this silo, and with what Flower's loop fetches it."""
        message = self.message(word)
        with no_object_id_recompute():
            message.metadata.__dict__["_message_id"] = message.object_id
            tree, objects = get_object_tree(message), get_all_nested_objects(message)
        return message, {
            "state": self.state,
            "object_store": self.state.object_store,
            "receive": lambda: (message, tree),
            "pull_object": lambda run_id, object_id: objects[object_id].deflate(),
            "confirm_message_received": lambda run_id, message_id: None,
            **dict.fromkeys(("node_config", "get_run", "get_fab", "trusted_entities")),
        }

    def answer(self, message: Message) -> None:
        """What the SuperNode does when the ClientApp has answered."""
        _insert_message(Message(message.content, reply_to=message), self.state, self.state.object_store)

    def replies(self) -> list[Message]:
        return list(self.state.get_messages_legacy(is_reply=True))


@pytest.fixture(scope="module")
def supernode() -> Iterator[SuperNode]:
    factory = NodeStateFactory(objectstore_factory=ObjectStoreFactory())
    state = factory.state()
    state.set_node_id(NODE)
    run = Run.create_empty(RUN)
    run.fab_hash, run.series_id = FAB_HASH, 5
    state.store_run(run)
    state.store_fab(Fab(FAB_HASH, b"bundle", {}))
    state.set_run_series_context(5, Context(RUN, NODE, {"silo-name": "north"}, RecordDict(), {}))
    server = uvicorn.Server(uvicorn.Config(create_app(factory, SECRET), port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield SuperNode(f"127.0.0.1:{port}", state)
    server.should_exit = True
    thread.join()


def test_a_message_comes_and_its_reply_goes(supernode: SuperNode) -> None:
    runtime = SuperNodeRuntime(supernode.address, None, SECRET)
    assert runtime.acquire() is None
    for times, word in enumerate(("hello", "and again, by a token of its own")):
        supernode.receive(word)
        job = runtime.acquire()
        assert isinstance(job, Job)
        assert job.run_id == RUN
        assert runtime.acquire() is None
        with runtime.holding(job):
            message, context, run, fab = runtime.pull()
            context.state["seen"] = ConfigRecord({"times": times})
            runtime.push(Message(message.content, reply_to=message), context, "")
        assert message.content["config"]["word"] == word
        assert (context.node_config, run.run_id, fab.content) == ({"silo-name": "north"}, RUN, b"bundle")
        [reply] = supernode.replies()
        assert reply.metadata.reply_to_message_id == message.metadata.message_id
        kept = supernode.state.get_run_series_context(5)
        assert kept is not None
        assert kept.state["seen"]["times"] == times


@pytest.mark.parametrize("lost", ["pull_object", "confirm_message_received"])
def test_a_message_whose_run_ends_on_its_way_leaves_nothing_behind(supernode: SuperNode, lost: str) -> None:
    def gone(*_: object) -> None:
        raise RunNotRunningException

    _, come = supernode.on_its_way("late")
    got = forgetting_ended_runs(_pull_and_store_message)(**{**come, lost: gone})
    assert got is None
    assert supernode.state.get_messages_legacy(is_reply=False) == []
    assert SuperNodeRuntime(supernode.address, None, SECRET).acquire() is None


def test_a_late_reply_to_a_stopped_run_does_not_take_the_place_of_the_next_answer(supernode: SuperNode) -> None:
    late, (message, come) = supernode.message("of a run that was stopped"), supernode.on_its_way("next")
    with no_object_id_recompute():
        late.metadata.__dict__["_message_id"] = late.object_id
    supernode.answer(late)
    sent = []

    def send(reply: Message, *_: object) -> tuple[set[str], str]:
        sent.append(reply.metadata.reply_to_message_id)
        if sent == [late.metadata.message_id]:
            supernode.answer(message)
            raise RunNotRunningException
        return set(), ""

    pull, push = answering_in_turn(_pull_and_store_message, _push_messages)
    assert pull(**come) == RUN
    push(state=supernode.state, object_store=supernode.state.object_store, send=send, push_object=None)
    assert sent == [late.metadata.message_id, message.metadata.message_id]
    assert supernode.state.get_messages_legacy() == []


def test_who_does_not_know_the_secret_gets_no_task(supernode: SuperNode) -> None:
    for secret in (None, b"another"):
        with pytest.raises(SuperNodeGoneError, match="give both the same --superexec-auth-secret-file"):
            SuperNodeRuntime(supernode.address, None, secret).acquire()


def test_a_supernode_that_is_gone_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flower_internals, "START_TIMEOUT", 3.0)
    runtime = SuperNodeRuntime("127.0.0.1:9", None, None)
    assert runtime.acquire() is None
    runtime._seen -= 5.0
    with pytest.raises(SuperNodeGoneError, match=r"has not answered for [5-9] s: .*refused"):
        runtime.acquire()


def test_objects_are_looked_for_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = recorded_waits(monkeypatch)
    flower_internals.shorten_object_waits()
    assert pull_objects(["a"], comes_at_look(3)) == {"a": b"content"}
    # Flower adds or takes 20 %, at random, and doubles.
    assert waits == [pytest.approx(n * flower_internals.SHORTEST_POLL_INTERVAL, rel=0.2) for n in (1, 2)]


def test_sleeps_grow_with_the_wait_and_begin_anew_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    slept, clock, now = [], PollingClock(), [0.0]

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return now[0]

        @staticmethod
        def sleep(seconds: float) -> None:
            slept.append(seconds)

    monkeypatch.setattr(flower_internals, "time", Clock)
    for now[0] in (0.0, 1.0, 10.0, 100.0):
        clock.sleep(3)
    clock.sleep(0.5)
    clock.sleep(3)
    assert slept == pytest.approx([0.01, 0.15, 1.5, 3, 0.01, 0.01])
    assert clock.monotonic() == 100.0
