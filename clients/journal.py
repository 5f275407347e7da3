"""One line in a real silo's log per message: silo, kind, round, seconds, outcome."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from flwr.app import Context, Message

from clients.context import shown_name
from fedsynth.logs import log_to_stderr
from fedsynth.messages.envelope import config_of
from fedsynth.text import printable

logger = logging.getLogger("fedsynth")


@dataclass
class Entry:
    """The work on one message.

    Attributes:
        start: monotonic seconds.
    """

    start: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Time worked so far."""
        return time.monotonic() - self.start


@contextlib.contextmanager
def journal(message: Message, context: Context) -> Iterator[Entry]:
    """Log one line per message at a real silo; simulated ones share the server's terminal and stay quiet."""
    entry = Entry()
    if "data-path" not in context.node_config:
        yield entry
        return
    log_to_stderr()
    what = _what(message)
    try:
        yield entry
    except BaseException as error:
        logger.error("%s: %s failed: %s: %s", shown_name(context), what, type(error).__name__, printable(error))
        raise
    logger.info("%s: %s answered after %.1f s", shown_name(context), what, entry.seconds)


def _what(message: Message) -> str:
    """Return kind, round and timestep of a request not checked yet; values that are no numbers are left out."""
    text = printable(message.metadata.message_type, 40)
    config = config_of(message)
    for key, label in (("server-round", "round"), ("timestep", "timestep")):
        if isinstance(value := config.get(key), int | float):
            text += f", {label} {value:g}"
    return text
