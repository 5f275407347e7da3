"""Rounds that several aggregators compute and certify, and every fault that one of the parties can bring about."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message
from replicas_by_hand import an_id
from replicated_rounds import AGGREGATE, TRAIN, Replicated, answered, equal, lost, rewrite

from fedsynth.config import RunConfig, Scalar
from fedsynth.errors import RunError, UserError
from fedsynth.messages import AggregateAnswer, AggregateRequest, TrainAnswer, TrainRequest, transport
from fedsynth.messages.aggregate import joined
from fedsynth.replicas.certificates import Ballot
from fedsynth.replicas.content_ids import content_id
from fedsynth.replicas.statements import Aggregate, Update

FALSE = {"result": an_id("false")}


@pytest.mark.parametrize(
    "method", [{"num-clients": 1}, {"strategy": "feddiffuse", "num-clients": 3}], ids=["m=1", "feddiffuse"]
)
def test_certified_weights_are_those_of_the_server_bit_for_bit(method: dict[str, Scalar], tmp_path: Path) -> None:
    plain = Replicated(tmp_path / "plain", {**method, "aggregators": "server"})
    run = Replicated(tmp_path / "silos", method)
    for _ in range(2):
        plain.play()
        run.play()
    assert equal(run.weights, plain.weights)
    chain = run.replication.chain
    assert (chain.round, len(chain.seen)) == (2, 2)


def test_a_rule_with_a_state_has_an_id_of_it_and_goes_on_from_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("strategies.conversation.replicas.LEAST_GRACE", 0.05)
    method: dict[str, Scalar] = {"strategy": "fedyogi"}
    plain = Replicated(tmp_path / "plain", {**method, "aggregators": "server"})
    run = Replicated(tmp_path / "silos", method)

    def scaled(record: Any) -> Any:
        return transport.encode_tensors({name: 2 * t for name, t in transport.decode_tensors(record or {}).items()})

    more = transport.encode_tensors({"first/conv_in.bias": torch.zeros(4, dtype=torch.float64)})
    lies: list[tuple[Callable[[AggregateRequest], dict[str, Any]], str]] = [
        (lambda request: {"state": more}, "the rule has nothing yet to carry on"),
        (lambda request: {"state": scaled(request.state)}, "carries on is not what the certificate of round 1 names"),
        (lambda request: {"base_arrays": scaled(request.base_arrays)}, "weights that came are not those it starts"),
    ]
    for change, said in lies:
        run.on_question = lambda kind, silo, question, change=change: (
            rewrite(question, AggregateRequest, change) if (kind, silo) == (AGGREGATE, 1) else None
        )
        plain.play()
        assert run.play()["signers"] == 3
        assert said in caplog.text
    assert equal(run.weights, plain.weights)
    run.on_question = lambda kind, silo, question: None
    # One that has lost its memory misses a training, is told the chain anew, and aggregates in the same round.
    next((tmp_path / "silos" / "silo-2" / "replicas").glob("*.json")).unlink()
    measured = run.play()
    assert (measured["silos"], measured["signers"]) == (3, 4)
    assert "one is missing" in caplog.text


Change = Callable[[str, int, Message], Message]


def other_result(run: Replicated, **changes: Any) -> Change:
    return lambda kind, silo, a: run.lie(silo, a, **changes) if (kind, silo) == (AGGREGATE, 1) else a


def other_roster(run: Replicated) -> Change:
    def change(kind: str, silo: int, answer: Message) -> Message:
        if (kind, silo) != (AGGREGATE, 1):
            return answer
        statement = AggregateAnswer.from_message(answer).statement
        roster = Aggregate.read(statement, run.replication.parties.aggregators)[0].roster
        return run.lie(silo, answer, roster=roster[:-1])

    return change


def owner_without_arrays(run: Replicated) -> Change:
    owners = run.number % 4, (run.number + 1) % 4

    def change(kind: str, silo: int, answer: Message) -> Message:
        dead = kind == AGGREGATE and silo in owners
        return answered(answer, replace(AggregateAnswer.from_message(answer), arrays=None)) if dead else answer

    return change


def owner_of_others(run: Replicated) -> Change:
    """The owner signs what it should, and sends something else."""
    owner = run.number % 4

    def change(kind: str, silo: int, answer: Message) -> Message:
        if (kind, silo) != (AGGREGATE, owner):
            return answer
        false = transport.encode_tensors({name: tensor + 1 for name, tensor in run.weights.items()})
        return answered(answer, replace(AggregateAnswer.from_message(answer), arrays=false))

    return change


HARMLESS: dict[str, tuple[Callable[[Replicated], Change], str]] = {
    "other weights": (lambda run: other_result(run, result=an_id("false")), "silo-1 signed another result than the"),
    "wrong state": (lambda run: other_result(run, state=an_id("state")), "signed another result than the quorum"),
    "stale round": (
        lambda run: other_result(run, terms=replace(run.last_terms, round=1)),
        "silo-1 left out: it signed a statement of another round or base",
    ),
    "other roster": (other_roster, "silo-1 left out: it signed a roster that nobody asked about"),
    "owner dead after quorum": (owner_without_arrays, "the owner did not send the weights; asking silo-3"),
    "owner of others": (owner_of_others, "the owner did not send the weights; asking silo-3"),
}
"""What one of four aggregators answers -> what the log says; q = 3."""


def test_one_faulty_aggregator_of_four_changes_nothing_and_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("strategies.conversation.replicas.LEAST_GRACE", 0.05)
    half: dict[str, Scalar] = {"fraction-train": 0.5}
    plain = Replicated(tmp_path / "plain", {**half, "aggregators": "server"})
    run = Replicated(tmp_path / "faulty", half)
    for fault, said in HARMLESS.values():
        caplog.clear()
        plain.play()
        run.before_round = lambda fault=fault: setattr(run, "on_answer", fault(run))
        assert run.play()["signers"] >= 3
        assert said in caplog.text
    run.before_round, run.on_answer = lambda: None, lambda kind, silo, answer: answer
    for fault, said in ((lost(AGGREGATE, 1), "silo-1 left out: gone"), (None, "no answer in time from")):
        caplog.clear()
        plain.play()
        run.on_question = fault or (lambda kind, silo, question: None)
        run.grid.silent = set() if fault else {(AGGREGATE, 1)}
        assert run.play()["signers"] == 3
        assert said in caplog.text
    caplog.clear()
    plain.play()
    owner = run.replication._owners(run.number + 1)[0]
    run.on_question, run.grid.silent = lost(AGGREGATE, int(owner[-1])), set()
    assert run.play()["signers"] == 3
    assert f"{owner} left out: gone" in caplog.text
    assert "the owner did not send the weights; asking " in caplog.text
    # One that is slow answers after the others agree, within the time that they are given: it signs, too.
    monkeypatch.setattr("strategies.conversation.replicas.LEAST_GRACE", 600.0)
    plain.play()
    run.on_question, run.grid.slow = lambda kind, silo, question: None, {(AGGREGATE, 1)}
    assert run.play()["signers"] == 4
    assert equal(run.weights, plain.weights), "ten rounds, bit for bit"
    assert (run.log().count('"dissent"'), run.log().count('"refused"')) == (2, 2), "kept as evidence"


def test_a_certificate_of_another_run_is_refused_and_what_an_owner_sends_second_is_compared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = Replicated(tmp_path)
    other.play()
    (foreign,) = other.replication._unheard("silo-1")
    plain, run = Replicated(tmp_path / "plain", {"aggregators": "server"}), Replicated(tmp_path)
    run.on_question = lambda kind, silo, question: (
        rewrite(question, TrainRequest, lambda request: {"certificates": (foreign,)})
        if (kind, silo) == (TRAIN, 1)
        else None
    )
    assert run.play()["silos"] == 3
    assert "silo-1: StatementError: a statement of another run" in caplog.text
    run = Replicated(tmp_path)
    answers = 0

    def first_nothing_then_something_else(kind: str, silo: int, answer: Message) -> Message:
        nonlocal answers
        if (kind, silo) != (AGGREGATE, 1):
            return answer
        answers += 1
        honest = AggregateAnswer.from_message(answer)
        if answers == 1:
            return answered(answer, replace(honest, arrays=None))
        false = {name: tensor + 1 for name, tensor in run.weights.items()}
        told = run.lie(silo, answer, result=content_id(false))
        return answered(told, replace(AggregateAnswer.from_message(told), arrays=transport.encode_tensors(false)))

    run.on_answer = first_nothing_then_something_else
    plain.play()
    assert run.play()["signers"] == 4
    assert "the owner did not send the weights; asking silo-2" in caplog.text
    assert (answers, equal(run.weights, plain.weights)) == (2, True)


def test_f_plus_one_liars_make_a_round_void_and_two_such_rounds_end_the_run(tmp_path: Path) -> None:
    run = Replicated(tmp_path)
    before = run.weights
    run.on_answer = lambda kind, silo, a: run.lie(silo, a, **FALSE) if kind == AGGREGATE and silo < 2 else a
    assert run.play()["void"] == 1
    assert equal(run.weights, before)
    with pytest.raises(RunError, match=r"rounds 1 and 2 are void: equal statements: 2, 2; 3 of 4 are needed"):
        run.play()
    # Round 3 may still be certified; a silo that is asked about a later one refuses.
    run.on_answer = lambda kind, silo, a: a
    run.number = 3
    with pytest.raises(RunError, match="3 rounds before round 4 have no certificate"):
        run.play()


def test_after_a_void_round_the_chain_goes_on(tmp_path: Path) -> None:
    run = Replicated(tmp_path)
    run.play()
    run.on_question = lost(AGGREGATE, 0, 1)
    run.play()
    run.on_question = lambda kind, silo, question: None
    assert run.play()["signers"] == 4
    assert sorted(run.replication.chain.seen) == [1, 3]


def test_q_liars_who_agree_win_which_is_the_documented_bound(tmp_path: Path) -> None:
    run = Replicated(tmp_path)
    lie = {name: tensor + 1 for name, tensor in run.weights.items()}

    def change(kind: str, silo: int, answer: Message) -> Message:
        if kind != AGGREGATE or silo == 3:
            return answer
        told = run.lie(silo, answer, result=content_id(lie))
        return answered(told, replace(AggregateAnswer.from_message(told), arrays=transport.encode_tensors(lie)))

    run.on_answer = change
    run.play()
    assert equal(run.weights, lie)


def test_a_coordinator_that_drops_an_update_is_found_by_its_silo_in_the_next_round(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Replicated(tmp_path)

    def drop(kind: str, silo: int, question: Message) -> None:
        if kind == AGGREGATE and run.number == 1:
            rewrite(
                question,
                AggregateRequest,
                lambda r: {"statements": r.statements[:3], "updates": joined(r.each_update()[:3])},
            )

    # The coordinator's own check must not stand in the way: it lies.
    run.on_question = drop
    honest = Ballot.__init__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ballot, "__init__", lambda self, p, t, roster: honest(self, p, t, roster[:3]))
        run.play()
    assert run.play()["silos"] == 3
    assert "silo-3" in caplog.text
    assert "round 1 was certified without this silo's update, or with another one" in caplog.text
    assert run.play()["silos"] == 4, "it is said once; then the silo takes part again"


def test_a_coordinator_cannot_swap_weights_replay_old_ones_or_leave_certificates_out(tmp_path: Path) -> None:
    run = Replicated(tmp_path)
    old: list[Any] = []

    def swap(request: TrainRequest) -> dict[str, Any]:
        tensors = transport.decode_tensors(request.arrays)
        return {"arrays": transport.encode_tensors({name: tensor + 1 for name, tensor in tensors.items()})}

    changes: dict[str, Callable[[TrainRequest], dict[str, Any]]] = {
        "the weights are not those that this run begins with": swap,
        "round 2: the weights are not those that this run begins with": lambda request: {"certificates": ()},
        "round 2: the weights are not those that the certificate of round 1 names": swap,
        "not those that the certificate of round 1": lambda request: {"arrays": old[0]},
        "round 1 is asked for after the certificate of round 1": lambda request: {"server_round": 1},
        "a statement under another key file": lambda request: {"keys": request.keys.replace("silo-0", "other")},
    }
    for k, (said, change) in enumerate(changes.items()):
        if k == 1:
            run.on_question = lambda kind, silo, question: None
            run.number = 0
            old.append(run.arrays)
            run.play()
        run.number = min(k, 1)
        run.on_question = lambda kind, silo, question, change=change: (
            rewrite(question, TrainRequest, change) if kind == TRAIN else None
        )
        with pytest.raises(RunError, match=said):
            run.play()


@pytest.mark.parametrize(("apart", "holds"), [(1e-6, True), (1e-3, False)])
def test_first_weights_may_have_the_last_bits_of_another_cpu(
    apart: float, holds: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Replicated(tmp_path, {"fraction-train": 0.5})
    changed = {
        name: weights + apart if weights.is_floating_point() else weights for name, weights in run.weights.items()
    }
    run.arrays = transport.encode_tensors(changed)
    if holds:
        # Two of the four have not trained, and see the weights when they aggregate.
        assert run.play()["signers"] == 4
        assert run.play()["signers"] == 4
        return
    honest = transport.decode_tensors(run.run.arrays)
    double = {name: weights.double() for name, weights in honest.items()}
    for arrays in (run.arrays, transport.encode_tensors(double)):
        run.arrays = arrays
        with pytest.raises(RunError, match="the weights are not those that this run begins with"):
            run.play()


def with_a_layer_more(run: Replicated, request: AggregateRequest, silo: int) -> AggregateRequest:
    """The same question with an update of another network, which its silo has signed."""
    key, updates, statements = run.key(silo), request.each_update(), list(request.statements)
    model = {**transport.decode_tensors(updates[silo]), "more": torch.zeros(2)}
    update = Update.read(statements[silo], run.replication.parties.silos)
    changed = replace(update, line=update.line._replace(update=content_id(model)))
    statements[silo], updates[silo] = changed.signed(key, key.public.signatures), transport.encode_tensors(model)
    return replace(request, statements=tuple(statements), updates=joined(updates))


def test_an_aggregator_signs_one_result_a_round_and_a_silo_one_update(tmp_path: Path) -> None:
    run = Replicated(tmp_path)
    run.play()
    kept = [message for kind, silo, message in run.grid.crossed if (kind, silo) == (AGGREGATE, 0)]
    assert not kept[0].has_error()
    asked: list[AggregateRequest] = []

    def two_rosters(kind: str, silo: int, question: Message) -> None:
        if (kind, silo) == (AGGREGATE, 0):
            asked.append(AggregateRequest.from_message(question))

    run.on_question = two_rosters
    run.play()
    other = replace(asked[0], statements=asked[0].statements[:3], updates=joined(asked[0].each_update()[:3]))
    run.on_question = lambda kind, silo, question: None
    for request, said in (
        (other, "this silo has signed another result of round 2"),
        (replace(other, statements=other.statements[:2], updates=joined(other.each_update()[:2])), "3 of 4 are needed"),
        (replace(asked[0], updates=joined([*asked[0].each_update()[:3], asked[0].each_update()[0]])), "it signed"),
        (replace(asked[0], statements=(*asked[0].statements[:3], asked[0].statements[0])), "not the weights that it"),
        (
            replace(
                asked[0],
                statements=(*asked[0].statements[:3], asked[0].statements[0]),
                updates=joined([*asked[0].each_update()[:3], asked[0].each_update()[0]]),
            ),
            "the roster is not in the order of the key file",
        ),
        (replace(asked[0], base=an_id("base")), "not those that the certificate of round 1 names"),
        (replace(asked[0], server_round=3), "its update is of another round"),
        (with_a_layer_more(run, asked[0], 1), "silo-1: its layers are not those that it was to train and report"),
    ):
        message = request.to_message(100)
        transport.pack_messages([message])
        (answer,) = run.grid.send_and_receive([message])
        assert said in answer.error.reason
    # Its training is asked for again, and gives other bits.
    memory = next((tmp_path / "silo-0" / "replicas").glob("*.json"))
    known = json.loads(memory.read_text())
    known["updates"]["3"] = ["silo-0", an_id("another"), 5]
    memory.write_text(json.dumps(known))
    assert run.play()["silos"] == 3


def test_an_update_that_its_silo_did_not_sign_as_it_is_does_not_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Replicated(tmp_path)
    kept: list[str] = []
    more = {name: tensor + 1 for name, tensor in run.weights.items()}
    faults: dict[str, Callable[[], dict[str, Any]]] = {
        "": dict,
        "its statement is of another round, or of other weights than it was sent": lambda: {"statement": kept[0]},
        "its statement names other weights, images": lambda: {"arrays": transport.encode_tensors(more)},
        "an update without a signed statement": lambda: {"statement": None},
    }
    for said, fault in faults.items():

        def change(kind: str, silo: int, answer: Message, fault: Callable[[], dict[str, Any]] = fault) -> Message:
            if (kind, silo) != (TRAIN, 2):
                return answer
            honest = TrainAnswer.from_message(answer)
            kept.append(str(honest.statement))
            return answered(answer, replace(honest, **fault()))  # type: ignore[arg-type]

        run.on_answer = change
        assert run.play()["silos"] == (3 if said else 4)
        assert said in caplog.text
        if said:
            # It finds that its update is not in the roster, says so once, and takes part again.
            run.on_answer = lambda kind, silo, answer: answer
            assert run.play()["silos"] == 3


def test_a_resumed_run_goes_on_with_the_chain(tmp_path: Path) -> None:
    method: dict[str, Scalar] = {"strategy": "fedadam"}
    run = Replicated(tmp_path, method)
    run.play()
    saved, first = run.run.strategy.state_dict(), run.arrays
    run.play()
    # The crash came after the second certificate and before its checkpoint: asked again, they sign the same.
    again = Replicated(tmp_path, method)
    again.run.strategy.load_state_dict(saved)
    again.arrays, again.number = first, 1
    again.play()
    assert again.replication.chain == run.replication.chain
    assert again.replication.chain.state == content_id(again.run.strategy.state_dict()["replicas"]["state"])
    assert equal(again.weights, run.weights)


def test_what_no_certificate_speaks_of_is_refused_before_anybody_is_asked() -> None:
    for changes, said in (
        ({"strategy": "fedddpm"}, "aggregators = 'silos': acts with strategy = 'fedavg', 'fedprox', 'fedavgm',"),
        (
            {"strategy": "feddiffuse", "feddiffuse-method": "udec"},
            "feddiffuse-method = 'udec' with aggregators = 'silos': the silos' own encoders",
        ),
        ({"strategy": "fedavg", "secure-aggregation": True}, "aggregators check every single update; set one of the"),
        ({"strategy": "fedavg", "wire-dtype": "float16"}, "bit for bit; set wire-dtype = 'float32'"),
        ({"strategy": "fedavg", "sample-from": "ema"}, "not their moving average; set sample-from = 'raw'"),
        ({"strategy": "fedavg", "dataset": "silos"}, "needs key-file, the silo-keys.json that every silo has"),
        (
            {"strategy": "fedavg", "aggregators": "server", "replica-quorum": "majority"},
            "acts with aggregators = 'silos'",
        ),
    ):
        given: dict[str, Scalar] = {"aggregators": "silos", **changes}
        with pytest.raises(UserError) as error:
            RunConfig.from_run_config(given)
        assert said in str(error.value)
