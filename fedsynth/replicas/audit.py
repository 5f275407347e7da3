"""What the log of a replicated run proves, from the log and a key file alone.

The log is a chain of lines (:mod:`fedsynth.chain`); what a line is, its ``event`` says: ``update`` (a silo's
statement), ``certificate``, ``dissent`` (a statement that says something else), ``refused`` (one that was none, by the
word of whoever wrote the log), ``void`` (a round without a certificate), ``resumed`` and ``published`` (the hash of the
list of the run's files).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fedsynth.chain import ChainReport
from fedsynth.replicas.certificates import MOST_VOID_ROUNDS, Chain, Parties, check_run
from fedsynth.replicas.envelopes import StatementError
from fedsynth.replicas.quorum import Rule
from fedsynth.replicas.statements import Aggregate, Contribution, Terms, Update
from fedsynth.text import printable

ROUNDS = "num-rounds"
"""Parameter of a rule that names its rounds."""
_WITHOUT_QUORUM = "signed a result when the round was tried without a quorum"


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
        twice: silos that signed two different updates of it, in one run.
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
    _open: list[tuple[str, Aggregate]] = field(default_factory=list)
    _left: list[tuple[str, Aggregate]] = field(default_factory=list)
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
                self._leave([one for one in self._open if one[1].terms.round == int(entry["round"])])
            case "resumed":
                self._go_back(int(entry["round"]), str(entry["head"]))
            case "published":
                self.files = str(entry["files"])
                if entry["head"] != self.certificates.head:
                    raise StatementError("the run was published with another head than the chain's")
                if left := sorted(self._certified.keys() - self.certificates.seen.keys()):
                    raise StatementError(f"round {left[0]} was certified, and the run went on without it: a fork")
                for name, other in self._open:
                    self.complain(f"dissent of {name} in round {other.terms.round}, of which the log says nothing else")
            case event:
                raise StatementError(f"unknown event '{printable(event, 20)}'")

    def _update(self, entry: Mapping[str, Any]) -> None:
        update = Update.read(entry["envelope"], self.parties.silos)
        place, said = (update.terms.round, update.line.silo), (update.terms, update.line)
        if self.parties.run:
            check_run(update.terms.run, update.terms.keys, self.parties)
        if (known := self._updates.get(place, said)) != said:
            if (known[0].run, known[0].keys) != (update.terms.run, update.terms.keys):
                raise StatementError(f"updates of {update.line.silo} for two runs or key files")
            self._round({"round": update.terms.round}).twice.add(update.line.silo)
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
        self._judge_open(known)
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
        """Take a statement that is to say something else than the certificate of its round, which comes later."""
        if found.terms.round != number:
            raise StatementError(f"what is to be {name}'s dissent of round {number} is of round {found.terms.round}")
        if self.parties.run:
            check_run(found.terms.run, found.terms.keys, self.parties)
        if number in self.certificates.seen:
            self._compare(name, found, self._certified[number])
        else:
            self._open.append((name, found))

    def _judge_open(self, certified: Aggregate) -> None:
        """Compare what is to be dissent with the certificate of its round, and what was left with the run alone.

        Each that does not hold is said: none hides the next, nor what is wrong with the certificate.
        """
        number = certified.terms.round
        judged = [one for one in self._open if one[1].terms.round == number]
        left, self._left = self._left, []
        self._open = [one for one in self._open if one not in judged]
        for name, other in [*left, *judged]:
            try:
                check_run(other.terms.run, other.terms.keys, self.parties)
                if (name, other) in judged:
                    self._compare(name, other, certified)
            except StatementError as error:
                self.complain(f"dissent of {name} in round {other.terms.round}: {error}")

    def _leave(self, statements: Iterable[tuple[str, Aggregate]]) -> None:
        """Take statements as those of a round that got no quorum: tried again, it may be certified as they say."""
        for one in statements:
            name, found = one
            self.rounds[found.terms.round].dissent[name] = _WITHOUT_QUORUM
            self._left.append(one)
            self._open.remove(one)

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
        self._leave(list(self._open))
        if head != self.certificates.head:
            raise StatementError(f"the run was resumed after round {last} with another head than the chain's")

    def missing_rounds(self) -> int:
        """Return how many of the rounds that the certificates name have no certificate and cannot be void.

        Nobody signs that a round was void: more of them at the end than may follow each other count as missing.
        """
        rounds, last = int(self.parameters.get(ROUNDS, 0)), self.certificates.round
        told = {number for number, said in self.rounds.items() if said.signers or said.why_void}
        if rounds - last > MOST_VOID_ROUNDS:
            told = {number for number in told if number <= last}
        return rounds - sum(1 <= number <= rounds for number in told)

    def _round(self, entry: Mapping[str, Any]) -> RoundAudit:
        number = int(entry["round"])
        return self.rounds.setdefault(number, RoundAudit(number))
