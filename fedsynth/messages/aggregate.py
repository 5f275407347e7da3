"""``query.aggregate``: a silo combines the updates of all, and signs what comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedsynth.messages.envelope import Answer, Reader, Request
from fedsynth.messages.fields import (
    ENVELOPE,
    KEYS,
    MAX_STEPS,
    MessageError,
    array_record,
    flag,
    image_spec,
    setting,
    several,
    text,
    whole,
)
from fedsynth.messages.transport import Arrays
from fedsynth.spec import ImageSpec


@dataclass(frozen=True, kw_only=True, eq=False)
class AggregateAnswer(Answer):
    """What a round makes.

    Attributes:
        statement: the signed statement.
        arrays: the weights that it names, where they were asked for.
        state: what it names that the rule carries on, where the weights were asked for and there is any.
    """

    statement: str = setting(ENVELOPE)
    arrays: Arrays | None = array_record(default=None)
    state: Arrays | None = array_record("state", default=None)


@dataclass(frozen=True, kw_only=True, eq=False)
class AggregateRequest(Request[AggregateAnswer]):
    """The updates of a round.

    Attributes:
        run_token: names the run.
        spec: format and classes of the run.
        server_round: 1 for the first.
        base: content id of the weights that the updates started from.
        keys: the public keys of all silos, as text.
        certificates: of the rounds since the last that the silo has heard of, oldest first.
        statements: of the silos whose updates these are, in the order in which they are combined.
        updates: their weights, see :func:`joined`.
        base_arrays: the weights that the updates started from, for rules that need them, and before the first
            certificate.
        state: what the rule carried on from the last certified round, if there is any.
        asked: samples and labels that the silos were asked about, where their answers are noise predictions.
        send_arrays: whether the answer is to hold the weights, too.
    """

    kind: ClassVar[str] = "query.aggregate"

    run_token: str = setting(text(r"[A-Za-z0-9_-]{1,64}"))
    spec: ImageSpec = image_spec()
    server_round: int = setting(whole(1, MAX_STEPS))
    base: str = setting(text(r"[0-9a-f]{64}"))
    keys: str = setting(KEYS)
    certificates: tuple[str, ...] = setting(several(ENVELOPE), ())
    statements: tuple[str, ...] = setting(several(ENVELOPE))
    updates: Arrays = array_record("updates")
    base_arrays: Arrays | None = array_record("base-arrays", default=None)
    state: Arrays | None = array_record("state", default=None)
    asked: Arrays | None = array_record("asked", default=None)
    send_arrays: bool = setting(flag, False)

    def check(self) -> None:
        """Refuse what :func:`joined` does not make."""
        split(self.updates, len(self.statements))

    def each_update(self) -> list[Arrays]:
        """Return the weights of every silo, in the order of the statements."""
        return split(self.updates, len(self.statements))

    def reader(self) -> Reader[AggregateAnswer]:
        """Read the answer by itself."""
        return AggregateAnswer.from_message


def joined(updates: Sequence[Arrays]) -> Arrays:
    """Return the weights of several silos as one record: those of the first under ``0/<name>``, and so on."""
    return Arrays({f"{k}/{name}": array for k, update in enumerate(updates) for name, array in update.items()})


def split(record: Arrays, count: int) -> list[Arrays]:
    """Inverse of :func:`joined`.

    Raises:
        MessageError: it is not the weights of ``count`` silos.
    """
    found = [Arrays() for _ in range(count)]
    numbers = {str(k): k for k in range(count)}
    for key, array in record.items():
        number, _, name = key.partition("/")
        if number not in numbers or not name:
            raise MessageError(f"updates hold '{key}': must be <number of the silo>/<layer>, of {count} silos")
        found[numbers[number]][name] = array
    return found
