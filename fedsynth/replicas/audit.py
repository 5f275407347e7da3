"""What the log of a replicated run proves, from the log and a key file alone.

The log is a chain of lines (:mod:`fedsynth.chain`); what a line is, its ``event`` says: ``update`` (a silo's
statement), ``certificate``, ``dissent`` (a statement that says something else), ``refused`` (one that was none, by the
word of whoever wrote the log), ``void`` (a round without a certificate), ``resumed`` and ``published`` (the hash of the
list of the run's files).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedsynth.chain import ChainReport
from fedsynth.replicas.certificates import Chain, Parties, check_run
from fedsynth.replicas.envelopes import StatementError
from fedsynth.replicas.quorum import Rule
from fedsynth.replicas.statements import Aggregate, Contribution, Terms, Update
from fedsynth.text import printable

ROUNDS = "num-rounds"
"""Parameter of a rule that names its rounds."""


@dataclass
class RoundAudit:
    """What the log says of a round.

    Attributes:
        number: 1 for the first.
        roster: silos whose updates were combined, and the images behind each.
        signers: aggregators whose signatures certify it; none: it is void.
        dissent: aggregators that signed something else, or sent no statement, with the reason.
        why_void: in words.
        result: content id of the weights after it.
        twice: silos that signed two different updates of it.
    """

    number: int
    roster: dict[str, int] = field(default_factory=dict)
    signers: tuple[str, ...] = ()
    dissent: dict[str, str] = field(default_factory=dict)
    why_void: str = ""
    result: str = ""
    twice: set[str] = field(default_factory=set)


@dataclass
class RunAudit(ChainReport):
    """Reads a log entry by entry; what does not hold is in ``problems``, each with the number of its entry.

    Attributes:
        parties: keys that count, and the quorum; ``run`` is that of the first certificate.
        rounds: by number.
        certificates: the chain's.
        rule: name of the strategy, as the first certificate says it.
        parameters: its settings; of a run that was resumed with more rounds those of the last certificate.
        first_base: content id of the weights that round 1 started from.
        files: SHA-256 of the list of the run's files; empty: the run was not finished.
    """

    parties: Parties = field(default_factory=lambda: Parties("", "", {}, {}, "byzantine"))
    rounds: dict[int, RoundAudit] = field(default_factory=dict)
    certificates: Chain = field(default_factory=Chain)
    rule: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    first_base: str = ""
    files: str = ""
    _updates: dict[tuple[int, str], tuple[Terms, Contribution]] = field(default_factory=dict)
    _envelopes: dict[int, str] = field(default_factory=dict)
    _certified: dict[int, Aggregate] = field(default_factory=dict)
    _dissent: dict[tuple[int, str], Aggregate] = field(default_factory=dict)
    _resumed: bool = False

    def take(self, entry: Mapping[str, Any]) -> None:
        """Judge an entry."""
        try:
            self._take(entry)
        except StatementError as error:
            self.complain(f"entry {entry['number']} ({printable(entry.get('event', ''), 20)}): {error}")
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            self.complain(f"entry {entry['number']} lacks or garbles something: {type(error).__name__}")

    def _take(self, entry: Mapping[str, Any]) -> None:
        match entry["event"]:
            case "update":
                self._update(entry)
            case "certificate":
                self._certificate(entry["envelope"])
            case "dissent" | "refused":
                self._objection(entry)
            case "void":
                self._round(entry).why_void = printable(entry["why"], 200)
            case "resumed":
                self._go_back(int(entry["round"]), str(entry["head"]))
            case "published":
                self.files = str(entry["files"])
                if entry["head"] != self.certificates.head:
                    raise StatementError("the run was published with another head than the chain's")
            case event:
                raise StatementError(f"unknown event '{printable(event, 20)}'")

    def _update(self, entry: Mapping[str, Any]) -> None:
        update = Update.read(entry["envelope"], self.parties.silos)
        place, said = (update.terms.round, update.line.silo), (update.terms, update.line)
        if self._updates.get(place, said) != said:
            self._round(entry).twice.add(update.line.silo)
        self._updates[place] = said

    def _objection(self, entry: Mapping[str, Any]) -> None:
        name = printable(entry["aggregator"], 64)
        if name not in self.parties.aggregators:
            raise StatementError(f"'{name}' is no aggregator of the key file")
        why = "signed another result"
        if entry["event"] == "refused":
            why = f"by the server's word sent no statement that holds: {printable(entry['why'], 200)}"
        else:
            found, _ = Aggregate.read(entry["envelope"], {name: self.parties.aggregators[name]})
            self._dissents(int(entry["round"]), name, found)
        self._round(entry).dissent[name] = why

    def _certificate(self, envelope: str) -> None:
        if not self.parties.run:
            self._begin(envelope)
        found = self.certificates.follow(envelope, self.parties)
        terms = found.terms
        _, signed = Aggregate.read(envelope, self.parties.aggregators, self.parties.quorum)
        self._envelopes[terms.round] = envelope
        said = self.rounds.setdefault(terms.round, RoundAudit(terms.round))
        said.roster = {line.silo: line.images for line in found.roster}
        said.signers, said.result, said.why_void = signed.signers, found.result, ""
        if (known := self._certified.setdefault(terms.round, found)) != found:
            raise StatementError(f"round {terms.round} has two certificates: a fork")
        for (number, name), other in self._dissent.items():
            if number == terms.round:
                self._compare(name, other, known)
        self._check_settings(found)
        for line in found.roster:
            if self._updates.get((terms.round, line.silo)) != (terms, line):
                raise StatementError(f"round {terms.round}: {line.silo} has signed no such update")

    def _begin(self, envelope: str) -> None:
        first, _ = Aggregate.read(envelope, self.parties.aggregators)
        rule: Rule = "majority" if first.parameters.get("replica-quorum") == "majority" else "byzantine"
        known = self.parties
        self.parties = Parties(first.terms.run, known.keys_hash, known.silos, known.aggregators, rule)
        self.rule, self.parameters, self.first_base = first.rule, first.parameters, first.terms.base

    def _check_settings(self, found: Aggregate) -> None:
        """Refuse another rule or other settings than the first: more rounds alone, of a run that was resumed."""
        more = found.parameters.get(ROUNDS, 0) > self.parameters.get(ROUNDS, 0)
        if self._resumed and more and {**found.parameters, ROUNDS: self.parameters[ROUNDS]} == self.parameters:
            self.parameters = found.parameters
        self._resumed = False
        if (found.rule, found.parameters) != (self.rule, self.parameters):
            raise StatementError(f"round {found.terms.round} has another rule or other settings than the first")

    def _dissents(self, number: int, name: str, found: Aggregate) -> None:
        """Take a statement that is to say something else than the certificate of its round, which may come later."""
        if found.terms.round != number:
            raise StatementError(f"what is to be {name}'s dissent of round {number} is of round {found.terms.round}")
        if self.parties.run:
            check_run(found.terms.run, found.terms.keys, self.parties)
        self._dissent[number, name] = found
        if (certified := self._certified.get(number)) is not None:
            self._compare(name, found, certified)

    @staticmethod
    def _compare(name: str, found: Aggregate, certified: Aggregate) -> None:
        number = certified.terms.round
        if found.terms != certified.terms:
            raise StatementError(
                f"what is to be {name}'s dissent of round {number} is of another run, key file or base"
            )
        if found == certified:
            raise StatementError(f"what is to be {name}'s dissent of round {number} says what the certificate does")

    def _go_back(self, last: int, head: str) -> None:
        """Take the chain back to a round after which the run went on."""
        kept = {number: envelope for number, envelope in self._envelopes.items() if number <= last}
        self.certificates, self._envelopes = Chain(), {}
        for number, envelope in sorted(kept.items()):
            self.certificates.follow(envelope, self.parties)
            self._envelopes[number] = envelope
        self._resumed = True
        if head != self.certificates.head:
            raise StatementError(f"the run was resumed after round {last} with another head than the chain's")

    def missing_rounds(self) -> int:
        """Return how many of the rounds that the certificates name have neither a certificate nor are void."""
        told = sum(bool(said.signers or said.why_void) for said in self.rounds.values())
        return max(0, int(self.parameters.get(ROUNDS, 0)) - told)

    def _round(self, entry: Mapping[str, Any]) -> RoundAudit:
        number = int(entry["round"])
        return self.rounds.setdefault(number, RoundAudit(number))
