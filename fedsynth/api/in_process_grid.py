"""A Flower grid that runs the real ClientApp in this process: whole runs without Ray, in seconds."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

_run_ids = itertools.count(1)


class InProcessGrid(Grid):
    """Answers messages at once with a ClientApp.

    Args:
        app: the ClientApp, or what calls it.
        run_config: what Flower would hand to both apps.
        num_nodes: simulated silos.
        tamper: changes the answers of one pull (order, content) before the server sees them.
        node_configs: node config of each silo, for real ones; None: partitions of the run's dataset.
    """

    def __init__(
        self,
        app: Callable[[Message, Context], Message],
        run_config: dict[str, Any],
        num_nodes: int,
        tamper: Callable[[list[Message]], list[Message]] = lambda replies: replies,
        node_configs: Sequence[dict[str, Any]] | None = None,
    ) -> None:
        run_id = next(_run_ids)
        # Flower sets these when it starts an app; a message cannot be built without them.
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, 1, 1
        self._app, self._tamper = app, tamper
        self._answers: dict[str, Message] = {}
        self._numbers = itertools.count(1)
        self._contexts = {
            100 + k: Context(
                run_id=run_id,
                node_id=100 + k,
                node_config=node_configs[k] if node_configs else {"partition-id": k, "num-partitions": num_nodes},
                state=RecordDict(),
                run_config=run_config,
            )
            for k in range(num_nodes)
        }

    def set_run(self, run: Run) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Run:
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return [self._answer(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        ready = [self._answers.pop(number) for number in list(message_ids) if number in self._answers]
        return self._tamper(ready)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return list(self.pull_messages(self.push_messages(messages)))

    def _answer(self, message: Message) -> str:
        number = str(next(self._numbers))
        message.metadata.__dict__["_message_id"] = number
        self._answers[number] = self._app(message, self._contexts[message.metadata.dst_node_id])
        return number
