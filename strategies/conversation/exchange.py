"""Messages out, answers in: one loop for every question, in simulation and in deployment.

Flower's own ``send_and_receive`` polls at fixed intervals (0.1 s, or 3 s against a SuperLink), returns silently
short and does not count bytes.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid

from fedsynth.errors import RunError
from fedsynth.messages import transport
from fedsynth.text import printable
from strategies.conversation.reply_log import UNSENT, ReplyLog

logger = logging.getLogger("fedsynth")

SHORTEST_POLL, LONGEST_POLL = 0.002, 0.05
POLL_SHARE, SIMULATED_POLL_SHARE = 0.15, 0.02
"""The poll interval, in seconds, is this share of the time waited so far, within these bounds: polling late costs at
most 15 %, and a long wait costs few polls. In a simulation, where a poll is no request, at most 2 %."""

_DEAD_WORKER = re.compile(
    r"<class 'ray\.exceptions\.(ActorDied|ActorUnavailable|WorkerCrashed|OutOfMemory|NodeDied|LocalRayletDied)Error'>"
)
"""How Flower's simulation begins its reason when the process of a simulated silo is gone."""


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


class Exchange:
    """A fast, counted and time-limited exchange of messages over a Flower grid.

    Args:
        grid: the grid Flower gave to the ServerApp.
        timeout: seconds to wait for the answers to one set of messages.

    Attributes:
        simulated: whether Flower's simulation plays the silos, in processes of this machine.
        traffic: what has crossed so far.
        reply_log: who answered.
    """

    def __init__(self, grid: Grid, timeout: float) -> None:
        self._grid = grid
        # By name: the class has moved between Flower's modules, and silos of a deployment come through another.
        self.simulated = any(kind.__name__ == "InMemoryGrid" for kind in type(grid).__mro__)
        self.timeout = timeout
        self.traffic = Traffic()
        self.reply_log = ReplyLog()

    def get_node_ids(self) -> list[int]:
        """Return the connected silos' node ids, sorted."""
        return sorted(self._grid.get_node_ids())

    def get_nodes(self) -> dict[int, NodeInfo]:
        """Return what the SuperLink knows of the connected silos, registered names and public keys, by node id."""
        return {node.node_id: node for node in self._grid.get_nodes()}

    def wait_for_nodes(self, count: int, timeout: float, stated: str = "num-clients") -> list[int]:
        """Wait until ``count`` silos are connected and return their node ids, sorted.

        Args:
            count: how many.
            timeout: seconds.
            stated: where the number comes from.

        Raises:
            RunError: fewer than ``count`` after ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        while len(nodes := self.get_node_ids()) < count:
            if time.monotonic() > deadline:
                raise RunError(
                    f"{len(nodes)} of {stated} = {count} silos connected within node-timeout = {timeout:g} s:"
                    " start the missing SuperNodes, or set num-supernodes and num-clients to the same number"
                )
            time.sleep(LONGEST_POLL)
        return nodes[:count]

    def send(
        self,
        messages: Iterable[Message],
        timeout: float | None = None,
        until: Callable[[], float] = lambda: math.inf,
    ) -> Iterator[tuple[int, Message]]:
        """Send at once, and return an iterator over the answers as they come, errors included.

        An answer is paired with its message by the id that it repeats; it comes with the message's index. The iterator
        keeps no answer, so that a consumer who lets each one go holds one at a time. Silos that have not answered after
        ``timeout`` seconds (None: the exchange's own), or at the ``time.monotonic()`` that ``until`` returns by then,
        are named in the log, and the iterator ends.

        Raises:
            RunError: not every message could be sent, or a simulation worker has died: every later message would fail.
        """
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        batch = list(messages)
        transport.pack_messages(batch)
        self.traffic.messages += len(batch)
        self.traffic.down += sum(transport.payload_bytes(message) for message in batch)
        nodes = [message.metadata.dst_node_id for message in batch]
        kind = batch[0].metadata.message_type if batch else ""
        ids = list(self._grid.push_messages(batch))
        if len(ids) < len(batch):
            raise RunError(f"{len(ids)} of {len(batch)} messages sent: a silo has left, or they are too large")
        # Flower puts None in the place of a message that the SuperLink refused.
        pending = {number: index for index, number in enumerate(ids) if number is not None}
        self.reply_log.ask(kind)
        if refused := {nodes[index] for index, number in enumerate(ids) if number is None}:
            logger.warning("no message could be sent to %s", self.reply_log.missed(refused, UNSENT))
        return self._receive(pending, nodes, lambda: min(deadline, until()))

    def _receive(
        self, pending: dict[str, int], nodes: list[int], deadline: Callable[[], float]
    ) -> Iterator[tuple[int, Message]]:
        since, share = time.monotonic(), SIMULATED_POLL_SHARE if self.simulated else POLL_SHARE
        while pending and time.monotonic() < deadline():
            replies = list(self._grid.pull_messages(list(pending)))
            while replies:
                reply = replies.pop()
                index = pending.pop(reply.metadata.reply_to_message_id, None)
                if index is not None:
                    self._refuse_dead_worker(reply)
                    self.traffic.up += _counted(reply)
                    self.reply_log.heard(nodes[index], reply)
                    yield index, reply
                # A loop variable would keep the last answer alive through the next wait.
                del reply
            if pending:
                time.sleep(min(max(share * (time.monotonic() - since), SHORTEST_POLL), LONGEST_POLL))
        if pending:
            silent = {nodes[index] for index in pending.values()}
            logger.warning("no answer in time from %s", self.reply_log.missed(silent))
        self.reply_log.listener()

    def _refuse_dead_worker(self, reply: Message) -> None:
        """Stop where the engine itself says that a worker has died.

        Flower's simulation says so under the code of what is no exception of the ClientApp. What a real silo writes
        into an error is its own word, whatever it reads like: it is left out as any other.
        """
        if not (self.simulated and reply.has_error() and reply.error.code == ErrorCode.UNKNOWN):
            return
        reason = printable(reply.error.reason)
        if _DEAD_WORKER.match(reason):
            raise RunError(f"a simulation worker died (out of memory?), resume the run: {reason}")


def _counted(reply: Message) -> int:
    """Return the bytes of an answer; 0 where its records cannot be serialised: whoever reads it will say why."""
    try:
        return transport.payload_bytes(reply)
    except Exception:
        return 0
