"""Questions to silos, and which of their answers are usable: no other place reads, names or counts answers.

What a usable answer is worth, its asker decides: screening may still give it no weight.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, TypeVar

import torch
from flwr.app import Message

from fedsynth.config import AUTO
from fedsynth.errors import RunError
from fedsynth.messages import Answer, MessageError, Request, sender_of
from fedsynth.messages.envelope import Reader, Shared
from fedsynth.text import printable
from strategies.conversation.census import Census
from strategies.conversation.exchange import Exchange
from strategies.conversation.reply_log import ReplyLog

logger = logging.getLogger("fedsynth")

A = TypeVar("A", bound=Answer)

Question = tuple[int, Request[A]]
"""Index of a silo in the census, and what to ask it."""

AnswerCheck = Callable[[int, A], None]
"""Checks, for the silo with this index, what only the asker can know; raises ValueError for an unusable answer."""

Quorum = Literal["one", "half", "all"]
"""How many of the silos that are asked must give a usable answer."""


def replies_needed(min_replies: int | Literal["auto"], asked: int, auto: Quorum) -> int:
    """Return how many of ``asked`` silos must give a usable answer.

    Args:
        min_replies: the configuration's; more than are asked means all of them.
        asked: number of silos.
        auto: what ``"auto"`` stands for.
    """
    if min_replies != AUTO:
        return min(min_replies, asked)
    return {"one": min(1, asked), "half": -(-asked // 2), "all": asked}[auto]


def ask(
    exchange: Exchange,
    questions: Iterable[Question[A]],
    census: Census,
    *,
    needed: int,
    timeout: float | None = None,
    check: AnswerCheck[A] | None = None,
    until: Callable[[], float] = lambda: math.inf,
) -> Iterator[tuple[int, A]]:
    """Send questions, and yield (index of the silo, its answer) for every usable answer as it comes.

    An error, an answer that cannot be read, that does not fit its question, or that ``check`` refuses is left out, with
    silo and reason in the log: whatever exception reading it raises is the silo's loss, not the run's. One that is no
    refusal (:class:`ValueError`) is a fault of ours as well, and its traceback goes to the log. Only a lack of memory
    is nobody's answer's fault and ends the run. No answer is kept here, so that one at a time is in memory if the
    caller lets each go.

    A generator: questions are sent when the first answer is asked for, and ``needed`` is judged after the last one.

    Args:
        exchange: the way to the silos.
        questions: what to ask whom; a silo may be asked several. Tensors and records that several share are sent once.
        census: the silos.
        needed: how many silos must give at least one usable answer each.
        timeout: seconds to wait for all answers; None: ``reply-timeout``.
        check: what the caller knows and the message does not.
        until: returns the ``time.monotonic()`` until which to wait at most, as things stand.

    Raises:
        RunError: fewer than ``needed`` silos; says the first reason. Also as :meth:`Exchange.send`.
        MemoryError: an answer does not fit into memory.
    """
    batch = list(questions)
    asked: list[tuple[int, Reader[A]]] = [(k, request.reader()) for k, request in batch]
    messages = _messages(batch, census, exchange.timeout)
    replies = exchange.send(messages, timeout, until)
    # The silos' answers need the room that the questions take.
    del questions, batch, messages
    yield from _usable(replies, asked, census, needed, check, exchange.reply_log)


class DrivenRound(list[Message]):
    """A round's messages, sent by somebody else; a list of them.

    Flower's ``configure_train`` and ``aggregate_train`` come to this: a strategy can be driven without an exchange.
    """

    def __init__(self, questions: Iterable[Question[Any]], census: Census, server_round: int) -> None:
        batch = list(questions)
        super().__init__(_messages(batch, census, None))
        self._asked: list[tuple[int, Reader[Any]]] = [(k, request.reader()) for k, request in batch]
        self._census = census
        for index, message in enumerate(self):
            # A reply repeats its question's id. Flower gives an id to what it sends; this is not sent by it.
            message.metadata.__dict__["_message_id"] = f"round-{server_round}-question-{index}"
        self._metadata = [message.metadata for message in self]

    @property
    def num_silos(self) -> int:
        """Silos that are asked something."""
        return len({silo for silo, _ in self._asked})

    def answers(
        self, replies: Iterable[Message], needed: int, check: AnswerCheck[A] | None = None
    ) -> Iterator[tuple[int, A]]:
        """Yield the usable answers among ``replies``, as :func:`ask` does."""
        return _usable(self._paired(replies), self._asked, self._census, needed, check, ReplyLog())

    def _paired(self, replies: Iterable[Message]) -> Iterator[tuple[int, Message]]:
        ids = {metadata.message_id: index for index, metadata in enumerate(self._metadata)}
        answered: set[int] = set()
        for reply in replies:
            index = ids.get(reply.metadata.reply_to_message_id)
            if index is None:
                index = self._question_to(reply)
            if index is None or index in answered:
                why = "not asked" if index is None else "it has answered this question already"
                logger.warning("%s left out: %s", sender_of(reply).name, why)
                continue
            answered.add(index)
            yield index, reply
            del reply

    def _question_to(self, reply: Message) -> int | None:
        """Return the one question that the sender of ``reply`` was asked."""
        node = reply.metadata.src_node_id
        mine = [index for index, metadata in enumerate(self._metadata) if metadata.dst_node_id == node]
        return mine[0] if len(mine) == 1 else None


def _messages(batch: Sequence[Question[A]], census: Census, ttl: float | None) -> list[Message]:
    shared: Shared = {}
    return [request.to_message(census.members[k].node_id, ttl, shared) for k, request in batch]


def _usable(
    replies: Iterator[tuple[int, Message]],
    asked: Sequence[tuple[int, Reader[A]]],
    census: Census,
    needed: int,
    check: AnswerCheck[A] | None,
    log: ReplyLog,
) -> Iterator[tuple[int, A]]:
    usable: set[int] = set()
    reasons: list[str] = []
    for index, reply in replies:
        k, read = asked[index]
        try:
            answer = _read(reply, read)
            if check is not None:
                check(k, answer)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            reasons.append(_note_left_out(k, reply, error, census, log))
            continue
        finally:
            # The loop variable would keep this answer alive through the wait for the next.
            del reply
        usable.add(k)
        yield k, answer
        del answer
    if len(usable) < needed:
        nodes = {census.members[k].node_id for k, _ in asked}
        why = reasons[0] if reasons else log.why_missing(nodes) or "no answer came"
        raise RunError(f"{len(usable)} usable answers, {needed} needed: {why}")


def _read(reply: Message, read: Reader[A]) -> A:
    if reply.has_error():
        raise MessageError(printable(reply.error.reason))
    return read(reply)


def _note_left_out(k: int, reply: Message, error: Exception, census: Census, log: ReplyLog) -> str:
    """Say in the log that an answer does not count; return silo and reason."""
    refused = isinstance(error, ValueError)
    reason = printable(str(error) if refused else f"reading it failed: {type(error).__name__}: {error}")
    member = census.members[k]
    name = member.name if census.known else sender_of(reply).name
    log.leave_out(member.node_id, reason)
    # A silo's own errors begin with its name. Without a census there is only a node's number, which says nothing.
    says_who = reason.startswith(f"{name}:") or (reply.has_error() and not census.known)
    said = "answer" if says_who else name
    logger.warning("%s left out: %s", said, reason, exc_info=None if refused else error)
    return reason if says_who else f"{name}: {reason}"
