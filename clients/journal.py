"""What a real silo records of every message: a line in its log, and an entry in ``audit.jsonl``."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from flwr.app import Context, Message

from clients.audit_log import AuditLog
from clients.context import is_real, shown_name, state_folder
from fedsynth.audit import Outcome
from fedsynth.errors import FilesError, UserError
from fedsynth.logs import log_to_stderr
from fedsynth.messages import transport
from fedsynth.messages.envelope import config_of
from fedsynth.policy import PolicyError
from fedsynth.text import printable

logger = logging.getLogger("fedsynth")

LONGEST_REASON = 300


@dataclass
class Entry:
    """The work on one message.

    Attributes:
        start: monotonic seconds.
        asked: what the message costs the silo, by word, such as ``samples``.
        reply: the answer; None as long as there is none.
    """

    start: float = field(default_factory=time.monotonic)
    asked: dict[str, float] = field(default_factory=dict)
    reply: Message | None = None

    @property
    def seconds(self) -> float:
        """Time worked so far."""
        return time.monotonic() - self.start

    def answered(self, reply: Message) -> Message:
        """Note the answer, and return it."""
        self.reply = reply
        return reply


@contextlib.contextmanager
def journal(message: Message, context: Context) -> Iterator[Entry]:
    """Record one message at a real silo; simulated ones share the server's terminal, and record nothing.

    Raises:
        UserError: the audit cannot be written. Then no work is done, or its answer must not be given.
    """
    entry = Entry()
    if not is_real(context):
        yield entry
        return
    log_to_stderr()
    what = _what(message)
    audit = AuditLog(state_folder(context))
    try:
        audit.check(_now())
        try:
            yield entry
        except BaseException as error:
            audit.append(_line(message, context, entry, error))
            raise
        audit.append(_line(message, context, entry))
    except BaseException as error:
        logger.error("%s: %s failed: %s: %s", shown_name(context), what, type(error).__name__, printable(error))
        raise
    logger.info("%s: %s answered after %.1f s", shown_name(context), what, entry.seconds)


def record_refusal(message: Message, context: Context, error: UserError) -> None:
    """Record a message that is refused before the ClientApp of its run is loaded.

    Raises:
        UserError: the audit cannot be written.
    """
    if is_real(context):
        AuditLog(state_folder(context)).append(_line(message, context, Entry(), error))


def _line(message: Message, context: Context, entry: Entry, error: BaseException | None = None) -> dict[str, Any]:
    """Return what the audit says of a message; what is not known is left out."""
    # Files that cannot be read refuse nothing: whoever looks after them should look.
    refused = isinstance(error, UserError) and not isinstance(error, FilesError)
    outcome: Outcome = "answered" if error is None else "refused" if refused else "failed"
    line: dict[str, Any] = {
        "time": _now(),
        # Numbers of 64 bits lose digits in some readers of JSON.
        "run": str(context.run_id),
        "strategy": printable(context.run_config.get("strategy", ""), 64),
        "message": _kind(message),
        "outcome": outcome,
        "asked": {printable(word, 40): int(amount) for word, amount in entry.asked.items()},
        "bytes-in": transport.payload_bytes(message),
        "bytes-out": 0,
        "seconds": round(entry.seconds, 3),
    }
    server_round = config_of(message).get("server-round")
    if isinstance(server_round, int):
        line["round"] = server_round
    if error is not None:
        line["why"] = printable(f"{type(error).__name__}: {error}", LONGEST_REASON)
        if isinstance(error, PolicyError):
            line["line"] = printable(error.line, LONGEST_REASON)
    elif entry.reply is not None:
        line["answered"] = transport.record_bytes(entry.reply)
        line["bytes-out"] = sum(line["answered"].values())
    return line


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _kind(message: Message) -> str:
    return printable(message.metadata.message_type, 40)


def _what(message: Message) -> str:
    """Return kind, round and timestep of a request not checked yet; values that are no numbers are left out."""
    text = _kind(message)
    config = config_of(message)
    for key, label in (("server-round", "round"), ("timestep", "timestep")):
        if isinstance(value := config.get(key), int | float):
            text += f", {label} {value:g}"
    return text
