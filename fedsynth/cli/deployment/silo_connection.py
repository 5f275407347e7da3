"""``connection.json``: what ``silo start`` notes of its way to the link, so that ``silo status`` can say it.

It lies in the state path, beside the lock that ``silo start`` holds as long as it runs. The note is for people: nothing
acts on it.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from fedsynth.errors import UserError
from fedsynth.files import write_json

logger = logging.getLogger("fedsynth")

CONNECTION_FILE = "connection.json"
SILO_LOCK = "silo.lock"

ConnectionState = Literal["connecting", "connected", "interrupted", "refused", "stopped", "ended"]


@dataclass(frozen=True)
class Connection:
    """How a silo stands with its link.

    Attributes:
        silo_name: of the silo.
        superlink: address of the link.
        policy: path of the policy that the silo was started with; empty: the default acts.
        pinned: programs that this policy named at the start.
        allowed: programs that may run, those of ``--allow-fab`` included; none: any.
        state: ``connecting`` until the link has taken the silo in; ``interrupted`` while it is not reached after that;
            ``refused`` by the link, ``stopped`` by a signal, ``ended`` by itself.
        since: when it came to that, ISO 8601.
        started: when ``silo start`` began.
        why: what is known of the reason.
    """

    silo_name: str
    superlink: str
    policy: str = ""
    pinned: tuple[str, ...] = ()
    allowed: tuple[str, ...] = ()
    state: ConnectionState = "connecting"
    since: str = ""
    started: str = ""
    why: str = ""


class ConnectionNote:
    """Keeps ``connection.json`` true while a silo runs. A note that cannot be written ends no silo.

    Args:
        path: the file.
        connection: what does not change while the silo runs.
    """

    def __init__(self, path: Path, connection: Connection) -> None:
        self._path = path
        self._connection = replace(connection, started=_now())
        self._is_warned = False
        self._write("connecting", "")

    def __call__(self, state: ConnectionState, why: str = "") -> None:
        """Note a state, if it is another one; a refusal by the link stays the reason of the end."""
        before = self._connection.state
        if state != before and not (before == "refused" and state == "ended"):
            self._write(state, why)

    def _write(self, state: ConnectionState, why: str) -> None:
        self._connection = replace(self._connection, state=state, since=_now(), why=why)
        try:
            write_json(self._path, asdict(self._connection))
        except OSError as error:
            if not self._is_warned:
                logger.warning(
                    "'%s' cannot be written (%s): 'fedsynth silo status' will not know", self._path, error.strerror
                )
            self._is_warned = True


def read_connection(path: Path) -> Connection | None:
    """Return what a silo has noted; None where there is no note.

    Raises:
        UserError: it cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        values: dict[str, Any] = {field.name: content[field.name] for field in fields(Connection)}
        values |= {name: tuple(map(str, values[name])) for name in ("pinned", "allowed")}
        if not all(isinstance(value, str | tuple) for value in values.values()):
            raise TypeError("a value is no text")
        return Connection(**values)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"'{path}' cannot be read ({error}): the next 'fedsynth silo start' writes it anew") from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
