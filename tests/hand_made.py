"""Messages as silos would send them, built by hand, and grids that know only what a test tells them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from fedsynth.messages import wire

# Flower sets these when it starts an app; a message cannot be built without them.
TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


def reply(
    request: Message, record: str, tensors: dict[str, torch.Tensor], partition: int | None = None, **metrics: Any
) -> Message:
    """Answer ``request`` with one array record; metrics are given in snake case."""
    content = RecordDict({record: wire.encode_tensors(tensors)})
    content[wire.METRICS] = MetricRecord({name.replace("_", "-"): value for name, value in metrics.items()})
    if partition is not None:
        content[wire.SILO] = ConfigRecord({"partition-id": partition})
    return Message(content, reply_to=request)


def bare_reply(request: Message, silo: dict[str, Any] | None = None, **metrics: Any) -> Message:
    """Answer ``request`` with metrics alone."""
    content = RecordDict({wire.METRICS: MetricRecord({key.replace("_", "-"): v for key, v in metrics.items()})})
    if silo is not None:
        content[wire.SILO] = ConfigRecord(silo)
    return Message(content, reply_to=request)


def error_reply(request: Message, reason: str) -> Message:
    """Answer ``request`` with an error."""
    return Message(Error(code=2, reason=reason), reply_to=request)


def request_to(node: int, message_type: str = wire.PREPARE, arrays: ArrayRecord | None = None) -> Message:
    """A request to one node."""
    return wire.request(node, message_type, {}, arrays)


class StubGrid(Grid):
    """Knows node ids, and answers every request at once with what ``respond`` makes of it."""

    def __init__(self, nodes: Iterable[int], respond: Callable[[Message], Message] | None = None) -> None:
        self.nodes, self.respond = list(nodes), respond
        self.requests: list[Message] = []

    def get_node_ids(self) -> Iterable[int]:
        return self.nodes

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        assert self.respond is not None
        sent = list(messages)
        self.requests += sent
        return [self.respond(message) for message in sent]

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError
