"""The reply log: for every silo its last answer, how long it took, or why it was left out."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Message, MetricRecord

from fedsynth.messages.envelope import METRICS
from fedsynth.messages.fields import LOSS, MessageError

LONGEST_REASON = 160
"""Characters kept of the reason why an answer was left out: a traceback does not belong into one line per round."""
LATE, UNSENT = "no answer in time", "the message could not be sent"
HELP = {LATE: "; see reply-timeout and round-timeout", UNSENT: "; see the SuperLink's log"}


@dataclass
class Entry:
    """What one silo did when it was last asked.

    Attributes:
        message: what it was asked.
        at: when it answered or the wait for it ended, in seconds since 1970.
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
        values = {"seconds": self.seconds, "loss": self.loss, "left-out": self.left_out or None}
        return {key: value for key, value in values.items() if value is not None}


@dataclass
class ReplyLog:
    """Keeps the entries of one exchange after the other, by node.

    Attributes:
        names: silo by node id; until they are known, a node goes by ``node-<id>``.
        listener: called after every exchange.
    """

    names: Mapping[int, str] = field(default_factory=dict)
    listener: Callable[[], None] = lambda: None
    _last: dict[int, Entry] = field(default_factory=dict)
    _current: dict[int, Entry] = field(default_factory=dict)
    _message: str = ""
    _start: float = 0.0
    _one: bool = False

    def name(self, node_id: int) -> str:
        """Return the name of the silo at a node."""
        return self.names.get(node_id, f"node-{node_id}")

    def ask(self, message: str) -> None:
        """Begin an exchange, or go on with one of :meth:`as_one`."""
        self._message = message
        if self._one and self._current:
            return
        self._start = time.monotonic()
        self._current = {}

    @contextlib.contextmanager
    def as_one(self) -> Iterator[None]:
        """Count what is asked in the block as one exchange: with the seconds of all of it, and the loss, if any."""
        self._current, self._one = {}, True
        try:
            yield
        finally:
            self._one = False

    def heard(self, node_id: int, reply: Message) -> None:
        """Note an answer, errors included."""
        metrics = reply.content.get(METRICS) if reply.has_content() else None
        # Nobody has looked at the answer yet: what is no loss is not shown, and not written to a file of numbers.
        loss = None
        with contextlib.suppress(MessageError):
            loss = LOSS("loss", metrics.get("loss")) if isinstance(metrics, MetricRecord) else None
        if self._one and loss is None and node_id in self._current:
            loss = self._current[node_id].loss
        self._note(
            node_id,
            seconds=round(time.monotonic() - self._start, 3),
            loss=loss,
        )

    def leave_out(self, node_id: int, reason: str) -> None:
        """Note why a silo's answer does not count."""
        entry = self._current.get(node_id)
        self._note(node_id, seconds=entry.seconds if entry else None, left_out=reason[:LONGEST_REASON])

    def missed(self, node_ids: Iterable[int], why: str = LATE) -> str:
        """Note silos that gave no answer, by default not in time; return their names."""
        nodes = sorted(node_ids)
        for node in nodes:
            self._note(node, left_out=why)
        return ", ".join(self.name(node) for node in nodes)

    def why_missing(self, node_ids: Iterable[int]) -> str:
        """Return why one of these silos gave no answer in the last exchange, with what helps; empty if all did."""
        missing = [(node, self._current[node].left_out) for node in sorted(node_ids) if node in self._current]
        for node, why in missing:
            if why:
                return f"{self.name(node)}: {why}{HELP.get(why, '')}"
        return ""

    def row(self) -> dict[str, dict[str, Any]]:
        """Return what every silo did in the last exchange, by name."""
        return {self.name(node): entry.row() for node, entry in sorted(self._current.items(), key=self._order)}

    def last(self) -> dict[str, Entry]:
        """Return the last thing known of every silo that was asked and, once they have names, takes part."""
        known = {node: entry for node, entry in self._last.items() if not self.names or node in self.names}
        return {self.name(node): entry for node, entry in sorted(known.items(), key=self._order)}

    def _note(self, node_id: int, **what: Any) -> None:
        self._current[node_id] = self._last[node_id] = Entry(self._message, time.time(), **what)

    def _order(self, item: tuple[int, Entry]) -> str:
        return self.name(item[0])
