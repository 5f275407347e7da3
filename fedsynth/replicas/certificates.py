"""Certificates, statements that a quorum has signed, and the chain that they form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from fedsynth.replicas.envelopes import StatementError, merged
from fedsynth.replicas.quorum import Rule, quorum
from fedsynth.replicas.statements import START, Aggregate, Contribution, Terms

MOST_VOID_ROUNDS = 1
"""Rounds without a certificate that may follow each other."""


@dataclass(frozen=True)
class Parties:
    """Who may sign what in a run.

    Attributes:
        run: token of the run.
        keys_hash: SHA-256 of the key file.
        silos: Ed25519 keys by name, in the order in which their updates are combined.
        aggregators: the same of those who aggregate, in the order in which they take turns.
        rule: of the quorum.
    """

    run: str
    keys_hash: str
    silos: Mapping[str, bytes]
    aggregators: Mapping[str, bytes]
    rule: Rule

    @property
    def quorum(self) -> int:
        """Equal statements that make a certificate."""
        return quorum(len(self.aggregators), self.rule)


@dataclass
class Chain:
    """What somebody knows of a run's certificates: the head, and the hash of every one before it.

    Attributes:
        round: of the last certificate; 0: there is none yet.
        head: its hash.
        result: content id of the weights that it certifies; empty: none.
        state: content id of what the rule carries on; empty: none.
        seen: hash of every certificate by its round.
    """

    round: int = 0
    head: str = START
    result: str = ""
    state: str = ""
    seen: dict[int, str] = field(default_factory=dict)

    def follow(self, envelope: str, parties: Parties) -> Aggregate:
        """Verify a certificate, and go on to it; one that is known already changes nothing.

        Raises:
            StatementError: too few signatures, another run or key file, or it does not follow from the head.
        """
        found, signed = Aggregate.read(envelope, parties.aggregators, parties.quorum)
        terms, number = found.terms, found.terms.round
        check_run(found.terms.run, terms.keys, parties)
        if (known := self.seen.get(number)) is not None:
            if known != signed.hash:
                raise StatementError(f"round {number} has two certificates: a fork")
            return found
        if number <= self.round:
            raise StatementError(f"a certificate of round {number} after that of round {self.round}: an old one")
        if terms.previous != self.head:
            raise StatementError(
                f"the certificate of round {number} does not follow from that of round {self.round}: one is missing,"
                " or the chain forks"
            )
        if self.result and terms.base != self.result:
            raise StatementError(f"round {number} did not start from what round {self.round} ended with")
        self.round, self.head, self.result, self.state = number, signed.hash, found.result, found.state
        self.seen[number] = signed.hash
        return found

    def check_next(self, server_round: int, base: str) -> None:
        """Refuse to work on a round that does not follow from the head.

        Args:
            server_round: of the question.
            base: content id of the weights that came with it.

        Raises:
            StatementError: an old round, too many rounds left out, or other weights than those certified.
        """
        if server_round <= self.round:
            raise StatementError(f"round {server_round} is asked for after the certificate of round {self.round}")
        if (void := server_round - self.round - 1) > MOST_VOID_ROUNDS:
            raise StatementError(f"{void} rounds before round {server_round} have no certificate")
        if self.result and base != self.result:
            raise StatementError(
                f"round {server_round}: the weights are not those that the certificate of round {self.round} names"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold of it."""
        seen = {str(number): found for number, found in self.seen.items()}
        return {"round": self.round, "head": self.head, "result": self.result, "state": self.state, "seen": seen}

    @classmethod
    def from_dict(cls, known: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`to_dict`."""
        seen = {int(number): str(found) for number, found in known["seen"].items()}
        return cls(int(known["round"]), str(known["head"]), str(known["result"]), str(known["state"]), seen)


def check_run(run: str, keys: str, parties: Parties) -> None:
    """Refuse a statement of another run, or under another key file.

    Raises:
        StatementError: it is one.
    """
    if run != parties.run:
        raise StatementError("a statement of another run")
    if keys != parties.keys_hash:
        raise StatementError("a statement under another key file: all parties must have the same")


def check_line(line: Contribution, roster: Iterable[Contribution], server_round: int) -> None:
    """Refuse a roster that lacks what a silo itself sent.

    Raises:
        StatementError: its update was left out or replaced.
    """
    if line not in roster:
        raise StatementError(f"round {server_round} was certified without this silo's update, or with another one")


class Ballot:
    """The statements of one round, grouped by their bytes.

    Args:
        parties: of the run.
        terms: of the round.
        roster: that the aggregators were asked about.

    Attributes:
        groups: payload -> aggregator -> envelope, in order of arrival.
        certificate: the first group with a quorum, as one envelope; empty while there is none.
        result: what it certifies.
    """

    def __init__(self, parties: Parties, terms: Terms, roster: tuple[Contribution, ...]) -> None:
        self._parties, self._terms, self._roster = parties, terms, roster
        self.groups: dict[bytes, dict[str, str]] = {}
        self.certificate = ""
        self.result: Aggregate | None = None
        self._winner = b""

    def add(self, aggregator: str, envelope: str) -> None:
        """Take an aggregator's statement.

        Args:
            aggregator: who sent it.
            envelope: as it came.

        Raises:
            StatementError: somebody else signed it, it is of another round, or it is the aggregator's second one.
        """
        found, signed = Aggregate.read(envelope, {aggregator: self._parties.aggregators[aggregator]})
        if found.terms != self._terms:
            raise StatementError("it signed a statement of another round or base")
        if found.roster != self._roster:
            raise StatementError("it signed a roster that nobody asked about")
        if any(aggregator in group for group in self.groups.values()):
            raise StatementError("it signed a second statement")
        group = self.groups.setdefault(signed.payload, {})
        group[aggregator] = envelope
        if not self.certificate and len(group) >= self._parties.quorum:
            self.result, self._winner = found, signed.payload
        if self._winner == signed.payload:
            self.certificate = merged(group[name] for name in sorted(group))

    @property
    def signers(self) -> tuple[str, ...]:
        """Whose statements make the certificate, sorted."""
        return tuple(sorted(self.groups.get(self._winner, ())))

    @property
    def dissent(self) -> dict[str, str]:
        """Statements that say something else, by aggregator."""
        others = [group for payload, group in self.groups.items() if payload != self._winner]
        return {name: envelope for group in others for name, envelope in sorted(group.items())}
