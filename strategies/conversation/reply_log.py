"""Who answered: for every silo its last answer, how long it took, or why it was left out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Message

from fedsynth.messages import wire

LONGEST_REASON = 160
"""Characters kept of the reason why an answer was left out: a traceback does not belong into a line a round."""


@dataclass
class Presence:
    """What one silo did in an exchange.

    Attributes:
        message: what it was asked.
        at: when it answered or was given up, in seconds since 1970.
        seconds: from the question to its answer; None without one.
        loss: the loss it reports, if any.
        left_out: why its answer does not count; empty if it does.
    """

    message: str
    at: float
    seconds: float | None = None
    loss: float | None = None
    left_out: str = ""

    def row(self) -> dict[str, Any]:
        """Return what ``metrics.jsonl`` says of the silo."""
        said = {"seconds": self.seconds, "loss": self.loss, "left-out": self.left_out or None}
        return {key: value for key, value in said.items() if value is not None}


@dataclass
class ReplyLog:
    """Keeps the roll of one exchange after the other.

    Attributes:
        names: silo by node id; until they are known, a node goes by ``node-<id>``.
        listener: called after every exchange.
    """

    names: Mapping[int, str] = field(default_factory=dict)
    listener: Callable[[], None] = lambda: None
    _last: dict[int, Presence] = field(default_factory=dict)
    _asked: dict[int, Presence] = field(default_factory=dict)
    _nodes: Mapping[str, int] = field(default_factory=dict)
    _message: str = ""
    _start: float = 0.0

    def name(self, node_id: int) -> str:
        """Name of the silo at a node."""
        return self.names.get(node_id, f"node-{node_id}")

    def ask(self, message: str, nodes: Mapping[str, int]) -> None:
        """Begin an exchange; ``nodes`` says who was sent which message."""
        self._message, self._nodes, self._start = message, dict(nodes), time.monotonic()
        self._asked = {}

    def name_behind(self, reply: Message) -> str:
        """Name of the silo that was asked: Flower's own errors, about a node that is gone, come from the SuperLink."""
        return self.name(self._node(reply))

    def heard(self, reply: Message) -> None:
        """Note an answer, errors included."""
        said = wire.metrics(reply).get("loss") if reply.has_content() else None
        self._note(
            self._node(reply),
            seconds=round(time.monotonic() - self._start, 3),
            loss=float(said) if isinstance(said, int | float) else None,
        )

    def leave_out(self, reply: Message, reason: str) -> None:
        """Note why an answer does not count."""
        present = self._asked.get(self._node(reply))
        seconds = present.seconds if present else None
        self._note(self._node(reply), seconds=seconds, left_out=reason[:LONGEST_REASON])

    def missed(self, node_ids: Iterable[int]) -> str:
        """Note silos that did not answer in time; return their names."""
        nodes = sorted(node_ids)
        for node in nodes:
            self._note(node, left_out="no answer in time")
        return ", ".join(self.name(node) for node in nodes)

    def row(self) -> dict[str, dict[str, Any]]:
        """Return what every silo did in the last exchange, by name."""
        return {self.name(node): was.row() for node, was in sorted(self._asked.items(), key=self._order)}

    def last(self) -> dict[str, Presence]:
        """Return the last thing known of every silo that was asked and, once they have names, takes part."""
        known = {node: was for node, was in self._last.items() if not self.names or node in self.names}
        return {self.name(node): was for node, was in sorted(known.items(), key=self._order)}

    def _node(self, reply: Message) -> int:
        return self._nodes.get(reply.metadata.reply_to_message_id, reply.metadata.src_node_id)

    def _note(self, node_id: int, **what: Any) -> None:
        self._asked[node_id] = self._last[node_id] = Presence(self._message, time.time(), **what)

    def _order(self, item: tuple[int, Presence]) -> str:
        return self.name(item[0])


class Answers(Iterator[Message]):
    """The answers of one exchange as they come, and the roll to note there which of them do not count.

    Args:
        replies: the answers; none is kept.
        reply_log: the roll.
    """

    def __init__(self, replies: Iterator[Message], reply_log: ReplyLog) -> None:
        self._replies, self.reply_log = replies, reply_log

    def __next__(self) -> Message:
        """Return the next answer."""
        return next(self._replies)
