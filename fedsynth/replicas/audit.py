"""What the log of a replicated run proves, from the log and a key file alone.

The log is a chain of lines (:mod:`fedsynth.chain`); what a line is, its ``event`` says: ``update`` (a silo's
statement), ``certificate``, ``dissent`` (a statement that says something else), ``refused`` (one that was none),
``void`` (a round without a certificate), ``resumed`` and ``published`` (the hash of the list of the run's files).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedsynth.chain import ChainReport
from fedsynth.replicas.certificates import Chain, Parties
from fedsynth.replicas.envelopes import StatementError
from fedsynth.replicas.quorum import Rule
from fedsynth.replicas.statements import Aggregate, Contribution, Terms, Update
from fedsynth.text import printable


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
    """

    number: int
    roster: dict[str, int] = field(default_factory=dict)
    signers: tuple[str, ...] = ()
    dissent: dict[str, str] = field(default_factory=dict)
    why_void: str = ""
    result: str = ""


@dataclass
class RunAudit(ChainReport):
    """Reads a log entry by entry; what does not hold is in ``problems``, each with the number of its entry.

    Attributes:
        parties: keys that count, and the quorum; ``run`` is that of the first certificate.
        rounds: by number.
        certificates: the chain's.
        rule: name of the strategy, as the first certificate says it.
        parameters: its settings.
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
                update = Update.read(entry["envelope"], self.parties.silos)
                self._updates[update.terms.round, update.line.silo] = update.terms, update.line
            case "certificate":
                self._certificate(entry["envelope"])
            case "dissent" | "refused":
                name = printable(entry["aggregator"], 64)
                why = "signed another result"
                if entry["event"] == "refused":
                    why = f"sent no statement that holds: {printable(entry['why'], 200)}"
                elif name in self.parties.aggregators:
                    Aggregate.read(entry["envelope"], {name: self.parties.aggregators[name]})
                self._round(entry).dissent[name] = why
            case "void":
                self._round(entry).why_void = printable(entry["why"], 200)
            case "resumed":
                self._go_back(int(entry["round"]))
            case "published":
                self.files = str(entry["files"])
                if entry["head"] != self.certificates.head:
                    raise StatementError("the run was published with another head than the chain's")
            case event:
                raise StatementError(f"unknown event '{printable(event, 20)}'")

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
        if (found.rule, found.parameters) != (self.rule, self.parameters):
            raise StatementError(f"round {terms.round} has another rule or other settings than the first")
        for line in found.roster:
            if self._updates.get((terms.round, line.silo)) != (terms, line):
                raise StatementError(f"round {terms.round}: {line.silo} has signed no such update")

    def _begin(self, envelope: str) -> None:
        first, _ = Aggregate.read(envelope, self.parties.aggregators)
        rule: Rule = "majority" if first.parameters.get("replica-quorum") == "majority" else "byzantine"
        known = self.parties
        self.parties = Parties(first.terms.run, known.keys_hash, known.silos, known.aggregators, rule)
        self.rule, self.parameters, self.first_base = first.rule, first.parameters, first.terms.base

    def _go_back(self, last: int) -> None:
        """Take the chain back to a round after which the run went on."""
        kept = {number: envelope for number, envelope in self._envelopes.items() if number <= last}
        self.certificates, self._envelopes = Chain(), {}
        for number, envelope in sorted(kept.items()):
            self.certificates.follow(envelope, self.parties)
            self._envelopes[number] = envelope

    def _round(self, entry: Mapping[str, Any]) -> RoundAudit:
        number = int(entry["round"])
        return self.rounds.setdefault(number, RoundAudit(number))
