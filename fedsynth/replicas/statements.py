"""What is signed in a round: a silo's update, and an aggregator's result."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from fedsynth.replicas.envelopes import Signed, Signs, StatementError, opened, sign, statement
from fedsynth.text import silo_name_problem

START = "0" * 64
"""Hash of the certificate before the first."""

_ID = re.compile(r"[0-9a-f]{64}")
_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,64}")
_MOST = 10**12


class Contribution(NamedTuple):
    """A line of a roster.

    Attributes:
        silo: name.
        update: content id of what it sent.
        images: behind it.
    """

    silo: str
    update: str
    images: int


@dataclass(frozen=True)
class Terms:
    """What all statements of a round have in common.

    Attributes:
        run: token of the run.
        round: 1 for the first.
        keys: SHA-256 of the key file.
        previous: hash of the last certificate; :data:`START` before there is one.
        base: content id of the weights that the round starts from.
    """

    run: str
    round: int
    keys: str
    previous: str
    base: str


@dataclass(frozen=True)
class Update:
    """A silo's statement: what it made of the base.

    Attributes:
        terms: of the round.
        line: of the roster.
    """

    terms: Terms
    line: Contribution

    KIND = "update"

    def signed(self, key: Signs, public: bytes) -> str:
        """Return the envelope with the silo's signature."""
        terms, line = self.terms, self.line
        predicate = {**_common(terms), "base": terms.base, "silo": line.silo, "images": line.images}
        return sign(statement(self.KIND, {"update": line.update}, predicate), key, public)

    @classmethod
    def read(cls, envelope: str, keys: Mapping[str, bytes]) -> Self:
        """Read an envelope that the silo which it names has signed.

        Args:
            envelope: from anywhere.
            keys: Ed25519 keys of all silos, by name.

        Raises:
            StatementError: it is none.
        """
        found = opened(envelope, cls.KIND, keys)
        said = found.predicate
        with _Parsing():
            line = _contribution([said["silo"], found.subject["update"], said["images"]])
            terms = _terms(said, said["base"])
        if found.signers != (line.silo,):
            raise StatementError(f"an update of '{line.silo}' that '{', '.join(found.signers)}' signed")
        return cls(terms, line)


@dataclass(frozen=True)
class Aggregate:
    """An aggregator's statement: what it made of the silos' updates.

    Attributes:
        terms: of the round.
        rule: name of the strategy.
        parameters: its settings, by key.
        roster: whose updates, in the order in which they were combined.
        result: content id of the weights after the round.
        state: content id of what the rule carries to the next round; of nothing, where it carries nothing.
    """

    terms: Terms
    rule: str
    parameters: dict[str, Any]
    roster: tuple[Contribution, ...]
    result: str
    state: str

    KIND = "aggregate"

    @property
    def payload(self) -> bytes:
        """The statement, equal bytes at every aggregator that computed the same."""
        predicate = {
            **_common(self.terms),
            "base": self.terms.base,
            "rule": self.rule,
            "parameters": self.parameters,
            "roster": [list(line) for line in self.roster],
        }
        return statement(self.KIND, {"result": self.result, "state": self.state}, predicate)

    @classmethod
    def read(cls, envelope: str, keys: Mapping[str, bytes], threshold: int = 1) -> tuple[Self, Signed]:
        """Read an envelope that ``threshold`` aggregators have signed: a statement, or a certificate.

        Args:
            envelope: from anywhere.
            keys: Ed25519 keys of the aggregators, by name.
            threshold: signatures needed.

        Raises:
            StatementError: it is none.
        """
        found = opened(envelope, cls.KIND, keys, threshold)
        said = found.predicate
        with _Parsing():
            roster = tuple(_contribution(line) for line in said["roster"])
            names = [line.silo for line in roster]
            if not roster or len(set(names)) < len(names):
                raise ValueError("a roster that is empty or names a silo twice")
            aggregate = cls(
                _terms(said, said["base"]),
                str(said["rule"]),
                dict(said["parameters"]),
                roster,
                _id(found.subject["result"]),
                _id(found.subject["state"]),
            )
        if aggregate.payload != found.payload:
            raise StatementError("a statement with fields that nobody reads")
        return aggregate, found


def _common(terms: Terms) -> dict[str, Any]:
    return {"run": terms.run, "round": terms.round, "keys": terms.keys, "previous": terms.previous}


def _terms(said: Mapping[str, Any], base: Any) -> Terms:
    run = said["run"]
    if not isinstance(run, str) or not _TOKEN.fullmatch(run):
        raise ValueError("run")
    return Terms(run, _whole(said["round"]), _id(said["keys"]), _id(said["previous"]), _id(base))


def _contribution(line: Any) -> Contribution:
    silo, update, images = line
    if problem := silo_name_problem(silo):
        raise ValueError(problem)
    return Contribution(silo, _id(update), _whole(images))


def _id(value: Any) -> str:
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise ValueError("an id is 64 hexadecimal digits")
    return value


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST:
        raise ValueError("a number from 1 up")
    return value


class _Parsing:
    """Turns whatever a stranger's JSON sets off into one error."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, StatementError):
            return
        if isinstance(error, ValueError | LookupError | TypeError | AttributeError):
            raise StatementError(f"a statement that lacks or garbles something: {type(error).__name__}: {error}")
