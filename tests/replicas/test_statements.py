from __future__ import annotations

import base64
import json
from dataclasses import replace

import pytest
from replicas_by_hand import Hands, an_id
from securesystemslib.dsse import Envelope
from securesystemslib.signer import SSlibKey

from fedsynth.replicas.certificates import Chain, check_line
from fedsynth.replicas.envelopes import StatementError, merged
from fedsynth.replicas.statements import Aggregate, Contribution, Update

HANDS = Hands()
UPDATE = Update(HANDS.terms(), HANDS.roster()[1])


def test_a_statement_is_in_totos_in_an_envelope_of_dsse() -> None:
    text = HANDS.signed("silo-1", UPDATE)
    assert Update.read(text, HANDS.parties.silos) == UPDATE
    envelope = Envelope.from_dict(json.loads(text))
    statement = json.loads(envelope.payload)
    assert envelope.payload_type == "application/vnd.in-toto+json"
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["subject"] == [{"name": "update", "digest": {"sha256": an_id("update 1")}}]
    # Whoever has the library alone can verify it.
    public = HANDS.secrets["silo-1"].public.signatures.hex()
    envelope.verify([SSlibKey(public, "ed25519", "ed25519", {"public": public})], 1)


def test_a_statement_is_its_signers_own() -> None:
    for signer, said in (("silo-2", "an update of 'silo-1' that 'silo-2' signed"),):
        with pytest.raises(StatementError, match=said):
            Update.read(HANDS.signed(signer, UPDATE), HANDS.parties.silos)
    with pytest.raises(StatementError, match="key that is not in the key file"):
        Update.read(Hands().signed("silo-1", UPDATE), HANDS.parties.silos)
    with pytest.raises(StatementError, match="no statement of kind 'aggregate', but 'update'"):
        Aggregate.read(HANDS.signed("silo-1", UPDATE), HANDS.parties.silos)


@pytest.mark.parametrize("text", [HANDS.signed("silo-1", UPDATE), HANDS.certified(HANDS.aggregate(HANDS.terms()))])
def test_no_byte_of_an_envelope_can_be_changed(text: str) -> None:
    keys = HANDS.parties.silos
    read = (
        (lambda t: Update.read(t, keys))
        if '"update"' in str(base64.b64decode(json.loads(text)["payload"]))
        else (lambda t: Aggregate.read(t, keys, 3))
    )
    read(text)
    for position in range(0, len(text), 7):
        changed = "A" if text[position] != "A" else "B"
        with pytest.raises(StatementError):
            read(text[:position] + changed + text[position + 1 :])


def test_a_signature_counts_once_and_under_its_own_payload() -> None:
    statement, other = HANDS.aggregate(HANDS.terms()), HANDS.aggregate(HANDS.terms(), "other")
    with pytest.raises(StatementError, match="2 signatures, 3 needed"):
        Aggregate.read(HANDS.certified(statement, 2), HANDS.parties.aggregators, 3)
    with pytest.raises(StatementError, match="different statements"):
        merged([HANDS.signed("silo-0", statement), HANDS.signed("silo-1", other)])
    doubled = json.loads(HANDS.certified(statement, 2))
    doubled["signatures"].append(doubled["signatures"][0])
    with pytest.raises(StatementError, match="Multiple signatures"):
        Aggregate.read(json.dumps(doubled, sort_keys=True, separators=(",", ":")), HANDS.parties.aggregators, 3)
    swapped = json.loads(HANDS.certified(statement))
    swapped["payload"] = json.loads(HANDS.certified(other))["payload"]
    with pytest.raises(StatementError, match="a signature does not fit"):
        Aggregate.read(json.dumps(swapped, sort_keys=True, separators=(",", ":")), HANDS.parties.aggregators, 3)


@pytest.mark.parametrize("garbage", ["", "{}", "[]", "null", '{"payload":1}', "[" * 9000, "x" * 50_000, '{"a":' * 5000])
def test_garbage_is_refused_by_name(garbage: str) -> None:
    with pytest.raises(StatementError):
        Update.read(garbage, HANDS.parties.silos)


def test_a_chain_goes_from_certificate_to_certificate() -> None:
    chain = Chain()
    first = HANDS.aggregate(HANDS.terms(), "one")
    chain.follow(HANDS.certified(first), HANDS.parties)
    chain.check_next(2, an_id("one"))
    # Round 2 was void.
    chain.check_next(3, an_id("one"))
    third = HANDS.aggregate(HANDS.terms(3, chain.head, "one"), "three")
    chain.follow(HANDS.certified(third), HANDS.parties)
    # Known ones change nothing, whoever signed them.
    head = chain.head
    for known in (first, third):
        chain.follow(HANDS.certified(known, 4), HANDS.parties)
    assert (chain.head, chain.round, chain.result) == (head, 3, an_id("three"))
    assert Chain.from_dict(json.loads(json.dumps(chain.to_dict()))) == chain


def test_what_does_not_follow_is_refused_by_name() -> None:
    chain = Chain()
    chain.follow(HANDS.certified(HANDS.aggregate(HANDS.terms(2), "two")), HANDS.parties)
    terms = HANDS.terms(3, chain.head, "two")
    for bad, said in (
        (replace(terms, round=1), "an old one"),
        (replace(terms, previous=an_id("x")), "one is missing, or the chain forks"),
        (replace(terms, base=an_id("x")), "did not start from what round 2 ended with"),
        (replace(terms, run="run-2"), "another run"),
        (replace(terms, keys=an_id("x")), "another key file"),
        (replace(terms, round=2), "round 2 has two certificates: a fork"),
    ):
        with pytest.raises(StatementError, match=said):
            chain.follow(HANDS.certified(HANDS.aggregate(bad)), HANDS.parties)
    with pytest.raises(StatementError, match="2 signatures, 3 needed"):
        chain.follow(HANDS.certified(HANDS.aggregate(terms), 2), HANDS.parties)
    for number, base, said in ((2, "two", "after the certificate"), (5, "two", "2 rounds"), (3, "x", "not those that")):
        with pytest.raises(StatementError, match=said):
            chain.check_next(number, an_id(base))


def test_a_silo_finds_its_own_update_in_the_roster() -> None:
    check_line(UPDATE.line, HANDS.roster(), 1)
    with pytest.raises(StatementError, match="round 1 was certified without this silo's update"):
        check_line(Contribution("silo-1", an_id("mine"), 11), HANDS.roster(), 1)


def test_q_equal_statements_win_and_the_others_are_kept() -> None:
    terms = HANDS.terms()
    ballot = HANDS.ballot(terms)
    honest, false = HANDS.aggregate(terms), HANDS.aggregate(terms, "false")
    for name, said in (("silo-0", false), ("silo-1", honest), ("silo-2", honest)):
        ballot.add(name, HANDS.signed(name, said))
    assert not ballot.certificate, "q - 1 liars, or q - 1 honest ones, certify nothing"
    ballot.add("silo-3", HANDS.signed("silo-3", honest))
    assert ballot.result == honest
    assert Chain().follow(ballot.certificate, HANDS.parties) == honest
    assert ballot.signers == ("silo-1", "silo-2", "silo-3")
    assert list(ballot.dissent) == ["silo-0"]
    for name, said, why in (
        ("silo-1", false, "a second statement"),
        ("silo-0", HANDS.aggregate(HANDS.terms(2)), "another round or base"),
        ("silo-0", replace(honest, roster=HANDS.roster(3)), "a roster that nobody asked about"),
    ):
        with pytest.raises(StatementError, match=why):
            ballot.add(name, HANDS.signed(name, said))
    with pytest.raises(StatementError, match="key that is not in the key file"):
        ballot.add("silo-1", HANDS.signed("silo-2", honest))


def test_q_liars_win() -> None:
    ballot = HANDS.ballot(HANDS.terms())
    false = HANDS.aggregate(HANDS.terms(), "false")
    for name in ("silo-0", "silo-1", "silo-2"):
        ballot.add(name, HANDS.signed(name, false))
    assert ballot.result == false, "the documented bound"
