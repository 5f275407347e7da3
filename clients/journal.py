"""What a real silo's log says of every message: who, what, which round, how long, how it went."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator

from flwr.app import Context, Message

from clients.context import silo_name
from fedsynth.logs import log_to_stderr
from fedsynth.messages import wire

logger = logging.getLogger("fedsynth")


@contextlib.contextmanager
def journal(message: Message, context: Context) -> Iterator[None]:
    """Log one line a message at a real silo; simulated ones share the server's terminal and stay quiet."""
    if "data-path" not in context.node_config:
        yield
        return
    log_to_stderr()
    start, what = time.monotonic(), _what(message)
    try:
        yield
    except BaseException as error:
        logger.error("%s: %s failed: %s: %s", silo_name(context), what, type(error).__name__, error)
        raise
    logger.info("%s: %s answered after %.1f s", silo_name(context), what, time.monotonic() - start)


def _what(message: Message) -> str:
    said, request = message.metadata.message_type, wire.config(message)
    for key, label in (("server-round", "round"), ("timestep", "level")):
        if key in request:
            said += f", {label} {wire.number(request, key):g}"
    return said
