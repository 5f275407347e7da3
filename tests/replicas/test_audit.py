"""The log of a run of twenty rounds, made and signed by hand, as an auditor reads it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from replicas_by_hand import Hands, an_id

from fedsynth.chain import START, chained, read_chain
from fedsynth.replicas.audit import RunAudit
from fedsynth.replicas.certificates import Chain
from fedsynth.replicas.statements import Update

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


def audited(log: bytes) -> RunAudit:
    report = RunAudit(parties=replace(HANDS.parties, run=""))
    read_chain(io.BytesIO(log), report, report.take)
    return report


def test_twenty_rounds_hold_and_what_is_altered_is_said_with_its_line() -> None:
    last, lines = START, []
    for entry in entries():
        line, last = chained(entry, last)
        lines.append(line)
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
