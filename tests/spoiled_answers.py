"""Answers of real silos that are changed on their way to the server."""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import Message
from hand_made import error_reply

from fedsynth.messages import sender_of

Tamper = Callable[[list[Message]], list[Message]]


def spoil(kind: str, change: Callable[[Message], Message], first: int = 1) -> Tamper:
    """Change what silo-1 answers to one kind of message, from its ``first`` answer on."""
    seen = 0

    def changed(reply: Message) -> Message:
        nonlocal seen
        if reply.metadata.message_type != kind or sender_of(reply).name != "silo-1":
            return reply
        seen += 1
        return change(reply) if seen >= first else reply

    return lambda replies: list(map(changed, replies))


def failed(reply: Message, reason: str = "silo-1: no power") -> Message:
    """An error in the place of an answer."""
    error = error_reply(reply, reason)
    error.metadata.__dict__["_reply_to_message_id"] = reply.metadata.reply_to_message_id
    return error
