"""Which answers can be used."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from flwr.app import Message

from fedsynth.errors import RunError
from fedsynth.messages import wire
from strategies.conversation.reply_log import Answers

logger = logging.getLogger("fedsynth")

T = TypeVar("T")


def usable(replies: Iterable[Message], needed: int) -> Iterator[Message]:
    """Yield the answers that are no errors, one at a time; otherwise as :func:`sound`."""
    return sound(replies, needed, lambda reply: reply)


def claimed_name(reply: Message) -> str:
    """Name of the silo, as the answer says."""
    return wire.silo_key(reply)[1]


def sound(
    replies: Iterable[Message],
    needed: int,
    read: Callable[[Message], T],
    name: Callable[[Message], str] = claimed_name,
    counted: Callable[[], int] | None = None,
) -> Iterator[T]:
    """Yield what ``read`` makes of every answer; leave out the others, with name and reason in the log.

    Args:
        replies: answers as they come.
        needed: least number of sound answers.
        read: raises ValueError or OverflowError for an answer that cannot be used.
        name: who gave an answer.
        counted: number of sound answers once all are read, where it is not that of the messages.

    Raises:
        RunError: fewer than ``needed`` sound answers came; says the first reason. Also as soon as a simulation
            worker has died, since every later message would fail.
    """
    count, reasons = 0, []
    for reply in replies:
        try:
            item = _read(reply, read, name)
        except _LeftOutError as error:
            who = error.who or _unsaid_name(replies, reply, str(error))
            reasons.append(f"{who}: {error}" if who else str(error))
            logger.warning("%s left out: %s", who or "answer", error)
            if isinstance(replies, Answers):
                replies.reply_log.leave_out(reply, str(error))
            continue
        finally:
            # The loop variable would keep this answer alive through the wait for the next.
            del reply
        count += 1
        yield item
        del item
    count = count if counted is None else counted()
    if count < needed:
        why = reasons[0] if reasons else "no answer in time; see reply-timeout"
        raise RunError(f"{count} usable answers, {needed} needed: {why}")


def _unsaid_name(replies: Iterable[Message], reply: Message, reason: str) -> str:
    """Name of the silo behind an error that does not say it: Flower's own, about a node that is gone."""
    if not isinstance(replies, Answers):
        return ""
    name = replies.reply_log.name_behind(reply)
    return "" if reason.startswith(f"{name}:") or name.startswith("node-") else name


def _read(reply: Message, read: Callable[[Message], T], name: Callable[[Message], str]) -> T:
    if reply.has_error():
        reason = str(reply.error.reason)
        if "ActorDied" in reason:
            raise RunError(f"a simulation worker died (out of memory?): {reason}")
        raise _LeftOutError(reason)
    try:
        return read(reply)
    except (ValueError, OverflowError) as error:
        raise _LeftOutError(str(error), name(reply)) from error


class _LeftOutError(Exception):
    """Why an answer cannot be used; ``who`` gave it, unless the reason says so itself."""

    def __init__(self, reason: str, who: str = "") -> None:
        super().__init__(reason)
        self.who = who


@contextmanager
def malformed_named(reply: Message) -> Iterator[None]:
    """Turn what reading a malformed answer raises into a RunError that names its silo."""
    try:
        yield
    except (LookupError, ValueError, OverflowError) as error:
        raise RunError(f"{wire.silo_key(reply)[1]}: unusable answer: {error}") from error


def seconds_worked(reply: Message) -> float:
    """Time the silo says it worked on an answer; 0 when it says nothing.

    Raises:
        ValueError: no number, negative or not finite.
    """
    seconds = wire.number(wire.metrics(reply), "seconds", 0.0)
    if not 0 <= seconds < math.inf:
        raise ValueError(f"seconds = {seconds}: must be >= 0 and finite")
    return seconds


def num_examples(reply: Message, most: int) -> int:
    """Number of examples behind an answer.

    Raises:
        ValueError: missing, not a whole number, or not within 1 … ``most``: a weight cannot be had for the asking.
    """
    value = wire.metrics(reply).get("num-examples", math.nan)
    if not isinstance(value, int) or not 1 <= value <= most:
        raise ValueError(f"num-examples = {value}: must be a whole number from 1 to max-silo-images = {most}")
    return value


def noise_prediction(reply: Message, shape: tuple[int, ...]) -> torch.Tensor:
    """Noise prediction of an answer, float32 of ``shape``; may share the answer's memory.

    Raises:
        ValueError: there is none, or it cannot be used.
    """
    arrays = list(wire.array_record(reply, wire.EPSILON_RECORD).values())
    if not arrays:
        raise ValueError(f"'{wire.EPSILON_RECORD}' is empty")
    values = wire.peek(arrays[0])
    if values.shape != shape:
        raise ValueError(f"answer has shape {tuple(values.shape)}, not {shape}")
    # The extremes of what is not finite are not finite; isfinite() on everything would need a copy.
    if not torch.stack(torch.aminmax(values)).float().isfinite().all():
        raise ValueError("answer is not finite")
    return values.float()
