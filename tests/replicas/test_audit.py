"""The log of a run of twenty rounds, made and signed by hand, as an auditor reads it."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from replicas_by_hand import Hands, an_id

from fedsynth.chain import START, chained, read_chain
from fedsynth.replicas.audit import RunAudit
from fedsynth.replicas.certificates import Chain
from fedsynth.replicas.statements import Terms, Update

ROUNDS, VOID = 20, 7
HANDS = Hands(m=8)


def entries(files: str = an_id("files")) -> Iterator[dict[str, Any]]:
    """What the coordinator writes: in round 7 nobody agrees, in every other silo-7 signs something else."""
    chain, base = Chain(), "start"
    for number in range(1, ROUNDS + 1):
        terms = HANDS.terms(number, chain.head, base)
        for line in HANDS.roster():
            envelope = HANDS.signed(line.silo, Update(terms, line))
            yield {"event": "update", "round": number, "silo": line.silo, "envelope": envelope}
        if number == VOID:
            yield {"event": "void", "round": number, "why": "equal statements: none"}
            continue
        false = HANDS.signed("silo-7", HANDS.aggregate(terms, "false"))
        yield {"event": "dissent", "round": number, "aggregator": "silo-7", "envelope": false}
        certificate = HANDS.certified(HANDS.aggregate(terms, base := f"result {number}"))
        chain.follow(certificate, HANDS.parties)
        yield {"event": "certificate", "round": number, "envelope": certificate}
    yield {"event": "published", "files": files, "head": chain.head}


def written(entries: Iterable[dict[str, Any]]) -> list[bytes]:
    """Entries as lines of a chain."""
    last, lines = START, []
    for entry in entries:
        line, last = chained(entry, last)
        lines.append(line)
    return lines


def audited(log: bytes) -> RunAudit:
    report = RunAudit(parties=replace(HANDS.parties, run=""))
    read_chain(io.BytesIO(log), report, report.take)
    return report


def test_twenty_rounds_hold_and_what_is_altered_is_said_with_its_line() -> None:
    lines = written(entries())
    report = audited(b"".join(lines))
    assert report.problems == []
    assert (report.certificates.round, len(report.certificates.seen)) == (ROUNDS, ROUNDS - 1)
    assert report.files == an_id("files")
    assert [number for number, said in report.rounds.items() if said.why_void] == [VOID]
    assert {len(said.signers) for said in report.rounds.values()} == {0, HANDS.parties.quorum}
    assert all("silo-7" in said.dissent for number, said in report.rounds.items() if number != VOID)
    for k in (0, len(lines) // 2, len(lines) - 1):
        altered = bytearray(lines[k])
        altered[len(altered) // 2] ^= 1
        report = audited(b"".join([*lines[:k], bytes(altered), *lines[k + 1 :]]))
        assert f"line {k + 1} is altered" in "\n".join(report.broken_lines())


@dataclass
class Told:
    """Entries of a log, and the chain that they make."""

    entries: list[dict[str, Any]] = field(default_factory=list)
    chain: Chain = field(default_factory=Chain)

    def updates(self, number: int, base: str) -> Terms:
        terms = HANDS.terms(number, self.chain.head, base)
        for line in HANDS.roster():
            envelope = HANDS.signed(line.silo, Update(terms, line))
            self.entries.append({"event": "update", "round": number, "silo": line.silo, "envelope": envelope})
        return terms

    def certificate(
        self, number: int, signers: int | None = None, result: str = "", rounds: int = 2, after: int | None = None
    ) -> str:
        """Add a round that goes on from round ``after``; return the hash of its certificate."""
        terms = self.updates(number, f"after {number - 1 if after is None else after}")
        statement = replace(HANDS.aggregate(terms, result or f"after {number}"), parameters={"num-rounds": rounds})
        envelope = HANDS.certified(statement, signers)
        self.entries.append({"event": "certificate", "round": number, "envelope": envelope})
        self.chain.follow(envelope, HANDS.parties)
        return self.chain.head

    def resumed(self, number: int, head: str) -> None:
        self.entries.append({"event": "resumed", "round": number, "head": head})
        found = self.chain
        self.chain = Chain(number, head, an_id(f"after {number}"), found.state, {number: head} if number else {})

    def problems(self) -> str:
        return "\n".join(self.report().problems)

    def report(self) -> RunAudit:
        return audited(b"".join(written(self.entries)))


def test_a_round_that_is_done_again_after_a_crash_must_end_as_before() -> None:
    told = Told()
    first = told.certificate(1)
    told.certificate(2)
    before = list(told.entries)
    told.resumed(1, first)
    told.certificate(2, signers=HANDS.m)
    told.resumed(2, told.chain.head)
    assert told.problems() == ""
    assert told.report().rounds[2].signers == tuple(sorted(HANDS.secrets))
    forked = Told(before, Chain())
    forked.resumed(1, first)
    forked.certificate(2, result="something else")
    assert "round 2 has two certificates: a fork" in forked.problems()
    left = Told(list(before), Chain())
    left.resumed(1, first)
    left.entries.append({"event": "void", "round": 2, "why": "equal statements: none"})
    left.certificate(3, after=1)
    left.entries.append({"event": "published", "files": an_id("files"), "head": left.chain.head})
    assert "round 2 was certified, and the run went on without it: a fork" in left.problems()
    lied = Told(list(before), told.chain)
    lied.resumed(1, an_id("head"))
    assert "resumed after round 1 with another head than the chain's" in lied.problems()


def test_a_run_that_goes_on_may_have_more_rounds_and_nothing_else_that_is_new() -> None:
    told = Told()
    told.certificate(1)
    told.certificate(2)
    sudden = Told(list(told.entries), replace(told.chain))
    sudden.certificate(3, rounds=3)
    assert "round 3 has another rule or other settings than the first" in sudden.problems()
    fewer = Told(list(told.entries), replace(told.chain))
    fewer.resumed(2, told.chain.head)
    fewer.certificate(3, rounds=1)
    assert "round 3 has another rule or other settings than the first" in fewer.problems()
    told.resumed(2, told.chain.head)
    told.certificate(3, rounds=4)
    report = told.report()
    assert (report.problems, report.parameters, report.missing_rounds()) == ([], {"num-rounds": 4}, 1)


def test_dissent_that_is_none_is_said_to_be_none() -> None:
    other = Hands(m=1, secrets={"silo-3": HANDS.secrets["silo-3"]})
    base = Told()
    base.updates(1, "after 0")
    terms = HANDS.terms(1, base.chain.head, "after 0")
    certificate = HANDS.certified(HANDS.aggregate(terms, "after 1"))
    certified = {"event": "certificate", "round": 1, "envelope": certificate}
    cases = {
        "": ("silo-3", HANDS.aggregate(terms, "false")),
        "'stranger' is no aggregator of the key file": ("stranger", HANDS.aggregate(terms, "false")),
        "dissent of round 1 is of round 2": ("silo-3", HANDS.aggregate(replace(terms, round=2), "false")),
        "a statement of another run": ("silo-3", HANDS.aggregate(replace(terms, run="run-2"), "false")),
        "is of another run, key file or base": (
            "silo-3",
            HANDS.aggregate(replace(terms, base=an_id("other")), "false"),
        ),
        "dissent of round 1 says what the certificate does": ("silo-3", HANDS.aggregate(terms, "after 1")),
    }
    for said, (name, statement) in cases.items():
        envelope = other.signed("silo-3", statement)
        dissent = {"event": "dissent", "round": 1, "aggregator": name, "envelope": envelope}
        for order in ([dissent, certified], [certified, dissent]):
            problems = Told([*base.entries, *order]).problems()
            assert said in problems
            assert bool(problems) == bool(said), problems
    refused = {"event": "refused", "round": 1, "aggregator": "silo-3", "why": "no base64"}
    report = Told([*base.entries, refused, certified]).report()
    assert report.rounds[1].dissent == {"silo-3": "by the server's word sent no statement that holds: no base64"}


def test_a_silo_that_signed_two_updates_is_named() -> None:
    told = Told()
    terms = told.updates(1, "after 0")
    line = HANDS.roster()[1]._replace(update=an_id("other"))
    told.entries.insert(0, {"event": "update", "round": 1, "envelope": HANDS.signed("silo-1", Update(terms, line))})
    report = told.report()
    assert (report.problems, report.rounds[1].twice) == ([], {"silo-1"})
    told.entries[0]["envelope"] = HANDS.signed("silo-1", Update(replace(terms, run="run-2"), line))
    report = told.report()
    assert "updates of silo-1 for two runs" in "".join(report.problems)
    assert report.rounds == {}


def test_what_was_signed_when_a_round_had_no_quorum_may_be_certified_when_it_is_tried_again() -> None:
    for ends in ("void", "killed"):
        told = Told()
        terms = told.updates(1, "after 0")
        for name in ("silo-3", "silo-4"):
            envelope = HANDS.signed(name, HANDS.aggregate(terms, "after 1"))
            told.entries.append({"event": "dissent", "round": 1, "aggregator": name, "envelope": envelope})
        if ends == "void":
            told.entries.append({"event": "void", "round": 1, "why": "equal statements: 2"})
        told.resumed(0, told.chain.head)
        told.certificate(1)
        report = told.report()
        assert report.problems == []
        assert report.rounds[1].signers
        assert set(report.rounds[1].dissent.values()) == {"signed a result when the round was tried without a quorum"}


def test_rounds_cut_off_are_missed_though_lines_of_void_rounds_stand_in_their_place() -> None:
    void = {"event": "void", "why": "equal statements: none"}
    for rounds, voids, missing in ((2, [2], 0), (3, [2, 3], 2), (2, [77], 1), (4, [2], 3)):
        told = Told()
        told.certificate(1, rounds=rounds)
        told.entries += [{**void, "round": number} for number in voids]
        assert told.report().missing_rounds() == missing, (rounds, voids)
