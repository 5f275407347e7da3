"""Cooperative inference that silos compose and certify, and what the server or a silo may do about it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message
from replicas_by_hand import an_id
from replicated_rounds import AGGREGATE, Replicated, answered, equal, lost, rewrite

from fedsynth.config import RunConfig, Scalar
from fedsynth.errors import RunError, UserError
from fedsynth.messages import AggregateAnswer, AggregateRequest, EpsilonAnswer, EpsilonRequest, transport
from fedsynth.messages.aggregate import joined
from fedsynth.mixture.moves import COMPOSED, LABELS, SAMPLES
from fedsynth.replicas.content_ids import content_id
from fedsynth.replicas.predictions import ASKED, COUNTS, EPSILON
from fedsynth.replicas.statements import Update

ASK = EpsilonRequest.kind
SETTINGS: dict[str, Scalar] = {
    "strategy": "dfd",
    "sampler": "sde-dpmsolver++",
    "weights": "constant",
    "screening": False,
    "copy-check": False,
    "dfd-rounds": 12,
    "num-samples": 10,
    "train-steps": 2,
    # Silos hold different classes, and are asked about different samples.
    "alpha": 0.3,
}


@pytest.fixture(autouse=True)
def _no_long_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("strategies.conversation.replicas.LEAST_GRACE", 0.05)


@pytest.fixture(scope="module", name="state")
def models_that_are_trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


def holders(run: Replicated) -> torch.Tensor:
    """Whether a silo holds the class of a sample, bool (K, N)."""
    return run.run.task.census.label_counts[:, run.run.task.labels] > 0


def everything_as_usual(run: Replicated) -> None:
    run.on_question, run.on_answer = lambda kind, silo, question: None, lambda kind, silo, answer: answer


def test_a_certified_set_is_that_of_a_server_bit_for_bit_whoever_of_four_lies_or_is_silent(
    state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain, run = Replicated(state, {**SETTINGS, "aggregators": "server"}), Replicated(state, SETTINGS)
    assert not holders(run).all()

    def lies(kind: str, silo: int, answer: Message) -> Message:
        return run.lie(silo, answer, result=an_id("false")) if (kind, silo) == (AGGREGATE, 1) else answer

    faults: list[tuple[dict[str, Any], str]] = [
        ({}, ""),
        ({"on_answer": lies}, "round 2: silo-1 signed another result than the quorum"),
        ({"on_question": lost(AGGREGATE, 3)}, "silo-3 left out: gone"),
    ]
    for fault, said in faults:
        everything_as_usual(run)
        for name, hook in fault.items():
            setattr(run, name, hook)
        plain.play()
        assert run.play()["signers"] == (3 if said else 4)
        assert said in caplog.text
        assert equal(run.weights, plain.weights)
    assert run.replication.chain.round == 3
    # A sampler of second order looks back at the level before, which is its state.
    assert run.replication.chain.state == content_id(run.replication.carried) != content_id({})


def test_a_class_of_which_no_holder_answers_makes_the_round_void(state: Path) -> None:
    run = Replicated(state, SETTINGS)
    silo = int(torch.nonzero(holders(run)[:, holders(run).sum(0) == 1])[0, 0])
    before = run.weights
    run.on_question = lost(ASK, silo)
    assert run.play()["void"] == 1
    assert equal(run.weights, before)
    assert "no holder answered, and all samples move together" in run.log()
    with pytest.raises(RunError, match="rounds 1 and 2 are void: class"):
        run.play()


def test_q_liars_who_agree_win_which_is_the_documented_bound(state: Path) -> None:
    plain, run = Replicated(state, {**SETTINGS, "aggregators": "server"}), Replicated(state, SETTINGS)

    def ask_for_all(kind: str, silo: int, question: Message) -> None:
        if kind == AGGREGATE:
            rewrite(question, AggregateRequest, lambda request: {"send_arrays": True})

    def lies(kind: str, silo: int, answer: Message) -> Message:
        if kind != AGGREGATE or silo == 3:
            return answer
        made = transport.decode_tensors(AggregateAnswer.from_message(answer).arrays or transport.Arrays())
        false = {**made, COMPOSED: made[COMPOSED] + 1}
        told = run.lie(silo, answer, result=content_id(false))
        return answered(told, replace(AggregateAnswer.from_message(told), arrays=transport.encode_tensors(false)))

    run.on_question, run.on_answer = ask_for_all, lies
    plain.play()
    assert run.play()["signers"] == 3
    assert not equal(run.weights, plain.weights)
    # The log names the only one that was honest.
    assert '"aggregator":"silo-3"' in run.log()


def resigned(run: Replicated, request: AggregateRequest, silo: int, **arrays: torch.Tensor) -> AggregateRequest:
    """The same question with other arrays of a silo, which it has signed."""
    key, updates, statements = run.key(silo), request.each_update(), list(request.statements)
    update = transport.decode_tensors(updates[silo]) | arrays
    signed = Update.read(statements[silo], run.replication.parties.silos)
    changed = replace(signed, line=signed.line._replace(update=content_id(update)))
    statements[silo], updates[silo] = changed.signed(key, key.public.signatures), transport.encode_tensors(update)
    return replace(request, statements=tuple(statements), updates=joined(updates))


def without(request: AggregateRequest, *silos: int) -> AggregateRequest:
    kept = [k for k in range(len(request.statements)) if k not in silos]
    updates = request.each_update()
    statements = tuple(request.statements[k] for k in kept)
    return replace(request, statements=statements, updates=joined([updates[k] for k in kept]))


def test_an_aggregator_composes_what_follows_from_the_last_certificate_and_nothing_else(state: Path) -> None:
    run = Replicated(state, SETTINGS)
    kept: list[AggregateRequest] = []

    def keep(kind: str, silo: int, question: Message) -> None:
        if (kind, silo) == (AGGREGATE, 0):
            kept.append(AggregateRequest.from_message(question))

    run.on_question = keep
    for _ in range(3):
        run.play()
    first, _, last = kept
    assert last.asked is not None
    samples, labels = (transport.decode(last.asked[name]) for name in (SAMPLES, LABELS))

    def asked(samples: torch.Tensor = samples, labels: torch.Tensor = labels) -> transport.Arrays:
        return transport.encode_tensors({SAMPLES: samples, LABELS: labels})

    def scaled(record: transport.Arrays | None) -> transport.Arrays:
        tensors = transport.decode_tensors(record or transport.Arrays())
        return transport.encode_tensors({name: values * 2 for name, values in tensors.items()})

    update = transport.decode_tensors(last.each_update()[1])
    sole = int(torch.nonzero(holders(run)[:, holders(run).sum(0) == 1])[0, 0])
    for request, said in (
        (replace(last, asked=asked(samples + 0.01)), "not those that the last certified prediction moves to"),
        (replace(last, asked=first.asked), "not those that the last certified prediction moves to"),
        (replace(last, asked=asked(samples + 1e-5)), "it was asked about other samples"),
        (replace(last, asked=asked(labels=labels.flip(0))), "other labels than those it starts from"),
        (replace(last, asked=asked(labels=labels + 10)), "a label that is none of the run's 10 classes"),
        (replace(last, asked=asked(samples[:, :, :4])), "samples of another shape"),
        (replace(last, asked=None), "no set of samples and labels"),
        (replace(last, base_arrays=scaled(last.base_arrays)), "are not those it starts from"),
        (replace(last, state=scaled(last.state)), "carries on is not what the certificate of round 2 names"),
        (replace(last, updates=joined([last.each_update()[1]] * 4)), "these are not the weights that it signed"),
        (resigned(run, last, 1, **{EPSILON: update[EPSILON][1:]}), "silo-1: its predictions are not of the shape"),
        (resigned(run, last, 1, **{ASKED: update[ASKED].flip(0)}), "silo-1: it was asked about other samples"),
        (resigned(run, last, 1, **{COUNTS: update[COUNTS] + 1}), "silo-1: its images by class are not"),
        (resigned(run, last, 1, **{EPSILON: update[EPSILON] * torch.inf}), "silo-1: a layer is not finite"),
        (without(last, 1, 2), "a roster of 2 silos, 3 of 4 are needed"),
        (without(last, sole), "no holder is in the roster"),
    ):
        message = replace(request, certificates=()).to_message(100)
        transport.pack_messages([message])
        (answer,) = run.grid.send_and_receive([message])
        assert answer.has_error(), said
        assert said in answer.error.reason


def test_a_silo_answers_no_question_that_does_not_follow_and_no_answer_counts_that_it_did_not_sign(
    state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Replicated(state, SETTINGS)
    run.play()
    questions: dict[str, dict[str, Any]] = {
        "are not those that the certificate of round 1 names": {"base": an_id("base")},
        "the question brings no keys and certificates": {"keys": None},
    }
    answers: dict[str, dict[str, Any]] = {
        "an update without a signed statement": {"statement": None},
        "its images by class are not those that it told": {"counts": torch.ones(10, dtype=torch.int64)},
        "its statement names other weights": {"epsilon": None},
    }
    for said, change in {**questions, **answers}.items():

        def on_question(kind: str, silo: int, question: Message, said: str = said, change: Any = change) -> None:
            if (kind, silo) == (ASK, 1) and said in questions:
                rewrite(question, EpsilonRequest, lambda request: change)

        def on_answer(kind: str, silo: int, answer: Message, said: str = said, change: Any = change) -> Message:
            if (kind, silo) != (ASK, 1) or said in questions:
                return answer
            honest = EpsilonAnswer.from_message(answer)
            changed = {"epsilon": honest.epsilon + 1} if "epsilon" in change else change
            made = replace(honest, **changed).to_message(answer, honest.sender)
            made.metadata.__dict__.update(answer.metadata.__dict__)
            return made

        run.on_question, run.on_answer = on_question, on_answer
        run.replication._voids = 0
        run.play()
        assert said in caplog.text, said
        if said in answers:
            # It finds that its update is not in the roster, says so once, and takes part again.
            run.on_answer = lambda kind, silo, answer: answer
            run.replication._voids = 0
            run.play()


def test_a_resumed_run_goes_on_with_chain_and_level(state: Path) -> None:
    run = Replicated(state, SETTINGS)
    for _ in range(2):
        run.play()
    saved, second = run.run.strategy.state_dict(), run.arrays
    run.play()
    again = Replicated(state, SETTINGS)
    again.run.strategy.load_state_dict(saved)
    assert again.run.strategy.num_rounds == run.run.strategy.num_rounds
    again.arrays, again.number = second, 2
    again.play()
    assert again.replication.chain == run.replication.chain
    assert equal(again.weights, run.weights)


def test_what_cannot_be_certified_is_refused_before_anybody_is_asked() -> None:
    assert RunConfig.from_run_config({"strategy": "dfd", "aggregators": "silos"}).settings.weights == "constant"  # type: ignore[attr-defined]
    for changes, said in (
        ({"weights": "posterior"}, "weights = 'posterior' with aggregators = 'silos': they come of exponentials"),
        ({"weights": "energy"}, "weights = 'energy' with aggregators = 'silos'"),
        ({"dfd-preset": "paper"}, "weights = 'energy' with aggregators = 'silos'"),
        ({"sampler": "ddim", "parallel-levels": 3}, "parallel-levels = 3 with aggregators = 'silos'"),
        ({"sampler": "ula"}, "sampler = 'ula' with aggregators = 'silos'"),
        ({"secure-aggregation": True}, "secure-aggregation = true with aggregators = 'silos'"),
        ({"wire-dtype": "float16"}, "set wire-dtype = 'float32'"),
    ):
        given: dict[str, Scalar] = {"strategy": "dfd", "aggregators": "silos", **changes}
        with pytest.raises(UserError) as error:
            RunConfig.from_run_config(given)
        assert said in str(error.value)
