"""Messages as silos would send them, built by hand, and a grid that knows only what a test tells it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from fedsynth.messages import PROTOCOL, transport

# Flower sets these when it starts an app; a message cannot be built without them.
TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


def reply(
    request: Message, record: str, tensors: dict[str, torch.Tensor], partition: int | None = None, **metrics: Any
) -> Message:
    """Answer ``request`` with one array record; metrics are given in snake case."""
    answer = bare_reply(request, None if partition is None else {"partition-id": partition}, **metrics)
    answer.content[record] = transport.encode_tensors(tensors)
    return answer


def bare_reply(request: Message, silo: dict[str, Any] | None = None, **metrics: Any) -> Message:
    """Answer ``request`` with metrics alone."""
    content = RecordDict({"metrics": MetricRecord({key.replace("_", "-"): v for key, v in metrics.items()})})
    content["silo"] = ConfigRecord({"protocol": PROTOCOL, **(silo or {})})
    return Message(content, reply_to=request)


def error_reply(request: Message, reason: str, code: int = 2) -> Message:
    """Answer ``request`` with an error."""
    return Message(Error(code=code, reason=reason), reply_to=request)


def request_to(node: int, message_type: str = "query.prepare") -> Message:
    """An empty request to one node."""
    return Message(RecordDict(), dst_node_id=node, message_type=message_type)


class StubGrid(Grid):
    """Knows node ids, and answers every request at once with what ``respond`` makes of it; None: not at all."""

    def __init__(self, nodes: Iterable[int], respond: Callable[[Message], Message | None] | None = None) -> None:
        self.nodes, self.respond = list(nodes), respond
        self.requests: list[Message] = []
        self._answers: dict[str, Message] = {}

    def get_node_ids(self) -> Iterable[int]:
        return self.nodes

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        assert self.respond is not None
        ids = []
        for message in messages:
            number = f"m{len(self.requests)}"
            message.metadata.__dict__["_message_id"] = number
            self.requests.append(message)
            ids.append(number)
            if (answer := self.respond(message)) is not None:
                self._answers[number] = answer
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._answers.pop(number) for number in list(message_ids) if number in self._answers]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise NotImplementedError

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError
