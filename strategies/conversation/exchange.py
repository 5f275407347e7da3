"""The conversation with the silos: one loop for every strategy, in simulation and in deployment.

Flower's own ``send_and_receive`` polls at fixed intervals (0.1 s, or 3 s against a SuperLink), returns silently
short and does not count bytes; its ``start`` can neither resume nor stop early.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from flwr.app import Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fedsynth.errors import RunError
from fedsynth.messages import wire
from strategies.conversation.reply_log import Answers, ReplyLog

logger = logging.getLogger("fedsynth")

SHORTEST_WAIT, LONGEST_WAIT = 0.002, 0.05
PATIENCE = 0.15
"""Seconds between two looks for answers: this share of the time waited so far, within these bounds, so that looking
late costs at most 15 % and a long wait costs few looks."""


@dataclass
class Traffic:
    """Bytes of all records that crossed, as serialised.

    Attributes:
        down: server to silos.
        up: silos to server.
        messages: requests sent.
    """

    down: int = 0
    up: int = 0
    messages: int = 0


class ExchangeGrid(Grid):
    """A Flower grid whose ``send_and_receive`` is a fast, counted and time-limited loop.

    Args:
        grid: the grid Flower gave to the ServerApp.
        timeout: seconds to wait for the answers to one set of messages.

    Attributes:
        traffic: what has crossed so far.
        reply_log: who answered.
    """

    def __init__(self, grid: Grid, timeout: float) -> None:
        self._grid, self.timeout, self.traffic, self.reply_log = grid, timeout, Traffic(), ReplyLog()

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Answers:
        """Send at once, then yield every answer as it comes, errors included.

        The iterator keeps no answer, so that a consumer who lets each one go holds one at a time. Silos that
        have not answered after ``timeout`` seconds are named in the log, and the iterator ends.
        """
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        return Answers(self._receive(self._send(messages), deadline), self.reply_log)

    def wait_for_nodes(self, count: int, timeout: float) -> list[int]:
        """Wait until ``count`` silos are connected and return their node ids, sorted.

        Raises:
            RunError: fewer than ``count`` after ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        while len(nodes := sorted(self._grid.get_node_ids())) < count:
            if time.monotonic() > deadline:
                raise RunError(
                    f"{len(nodes)} of num-clients = {count} silos connected within node-timeout = {timeout:g} s:"
                    " start the missing SuperNodes, or set num-supernodes and num-clients to the same number"
                )
            time.sleep(LONGEST_WAIT)
        return nodes[:count]

    def _send(self, messages: Iterable[Message]) -> dict[str, int]:
        batch = list(messages)
        wire.pack_messages(batch)
        self.traffic.messages += len(batch)
        self.traffic.down += sum(wire.payload_bytes(message) for message in batch)
        nodes = [message.metadata.dst_node_id for message in batch]
        kind = batch[0].metadata.message_type if batch else ""
        ids = list(self._grid.push_messages(batch))
        if len(ids) < len(batch):
            raise RunError(f"{len(ids)} of {len(batch)} messages sent: a silo has left, or they are too large")
        # Flower puts None in the place of a message that the SuperLink refused.
        sent = {number: node for number, node in zip(ids, nodes, strict=True) if number is not None}
        self.reply_log.ask(kind, sent)
        if refused := set(nodes) - set(sent.values()):
            logger.warning("no message could be sent to %s", self.reply_log.missed(refused))
        return sent

    def _receive(self, pending: dict[str, int], deadline: float) -> Iterator[Message]:
        since = time.monotonic()
        while pending and time.monotonic() < deadline:
            replies = list(self._grid.pull_messages(list(pending)))
            while replies:
                reply = replies.pop()
                if pending.pop(reply.metadata.reply_to_message_id, None) is not None:
                    self.traffic.up += wire.payload_bytes(reply)
                    self.reply_log.heard(reply)
                    yield reply
                # A loop variable would keep the last answer alive through the next wait.
                del reply
            if pending:
                time.sleep(min(max(PATIENCE * (time.monotonic() - since), SHORTEST_WAIT), LONGEST_WAIT))
        if pending:
            logger.warning("no answer in time from %s", self.reply_log.missed(set(pending.values())))
        self.reply_log.listener()

    def set_run(self, run: Run) -> None:
        """Delegate to the wrapped grid."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """Run of the wrapped grid."""
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Delegate to the wrapped grid."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Delegate to the wrapped grid."""
        return self._grid.get_node_ids()

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Delegate to the wrapped grid."""
        return self._grid.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Delegate to the wrapped grid, uncounted."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Delegate to the wrapped grid, uncounted."""
        return self._grid.pull_messages(message_ids)
