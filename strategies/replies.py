"""Which answers can be used."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from flwr.app import Message

from fedsynth import wire
from fedsynth.errors import RunError

logger = logging.getLogger("fedsynth")


def usable(replies: Iterable[Message], needed: int) -> Iterator[Message]:
    """Yield the answers that are no errors, one at a time; name the others in the log.

    Args:
        replies: answers as they come.
        needed: least number of usable answers.

    Raises:
        RunError: fewer than ``needed`` usable answers came; says the first reason given. Also as soon as a
            simulation worker has died, since every later message would fail.
    """
    count, reasons = 0, []
    for reply in replies:
        if not reply.has_error():
            count += 1
            yield reply
            # The loop variable would keep this answer alive through the wait for the next.
            del reply
            continue
        reasons.append(str(reply.error.reason))
        logger.warning("answer left out: %s", reasons[-1])
        if "ActorDied" in reasons[-1]:
            raise RunError(f"a simulation worker died (out of memory?): {reasons[-1]}")
    if count < needed:
        why = reasons[0] if reasons else "no answer in time; see reply-timeout"
        raise RunError(f"{count} usable answers, {needed} needed: {why}")


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
        ValueError: no number.
    """
    return wire.number(wire.metrics(reply), "seconds", 0.0)


def num_examples(reply: Message) -> int:
    """Number of examples behind an answer.

    Raises:
        ValueError: missing, not a whole number, or not positive.
    """
    record = wire.metrics(reply)
    value = record.get("num-examples", math.nan)
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"num-examples = {value}: must be a whole number >= 1")
    return value
