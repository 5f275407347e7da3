"""A server that asks for sums of updates and does not keep to what all silos are told: nothing is opened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Message
from summed_rounds import after_rounds, begin, largest_difference

from fedsynth.errors import RunError
from fedsynth.messages import MaskedTrainRequest, transport
from fedsynth.messages.envelope import CONFIG

VICTIM = 1
KIND = MaskedTrainRequest.kind


def config_of(question: Message) -> ConfigRecord:
    record = question.content[CONFIG]
    assert isinstance(record, ConfigRecord)
    return record


def other_weights(question: Message) -> None:
    """The victim alone gets a network that the server has made for it."""
    weights = transport.decode_tensors(transport.array_record(question, "arrays"))
    replace_arrays(question, "arrays", {name: tensor * 2 for name, tensor in weights.items()})


def replace_arrays(question: Message, name: str, tensors: dict) -> None:
    for key in [key for key in question.content if key.partition("#")[0] == name]:
        del question.content[key]
    question.content[name] = transport.encode_tensors(tensors)


@pytest.mark.parametrize(
    "change",
    [
        other_weights,
        lambda question: config_of(question).update({"steps": 3}),
        lambda question: config_of(question).update({"proximal-mu": 5.0}),
        lambda question: config_of(question).update({"ranges": [2 * r for r in config_of(question)["ranges"]]}),
    ],
    ids=["weights", "steps", "proximal-mu", "ranges"],
)
def test_a_silo_that_is_asked_something_else_is_left_out_by_name(
    change: Callable[[Message], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def hook(kind: str, silo: int, question: Message) -> None:
        if kind == KIND and silo == VICTIM:
            change(question)

    run, grid = begin(tmp_path, hook, secure_aggregation=True, train_steps=2)
    after_rounds(run)
    assert "silo-1 left out of the sum: has another key or was asked something else" in caplog.text
    assert run.strategy.state_dict()["members"] == ["silo-0", "silo-2", "silo-3"]
    assert grid.asked("query.reveal") == [0, 2, 3]


def weights_of(*weights: float) -> Callable[[Message], None]:
    import torch

    return lambda question: replace_arrays(question, "weights", {"weights": torch.tensor([[w] for w in weights])})


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (weights_of(0.7, 0.1, 0.1, 0.1), "0.70 of the weight, 0.5 is the most"),
        (weights_of(0.5, 0.5, 0.0, 0.0), "2 holders, 3 are needed"),
        (weights_of(0.9, 0.9, 0.9, 0.9), "weights add up to 3.600, 1 is the most"),
        (lambda question: config_of(question).update({"ranges": [1e9] * len(config_of(question)["ranges"])}), "ranges"),
        (
            lambda question: config_of(question).update({"ranges": [1e-9] * len(config_of(question)["ranges"])}),
            "ranges",
        ),
        (lambda question: config_of(question).update({"ranges": [1.0]}), "1 ranges of"),
    ],
    ids=["above half", "two holders", "overflow", "large range", "small range", "missing ranges"],
)
def test_what_would_show_an_update_or_spoil_the_sum_is_refused_before_anybody_trains(
    change: Callable[[Message], None], why: str, tmp_path: Path
) -> None:
    def hook(kind: str, silo: int, question: Message) -> None:
        if kind == KIND:
            change(question)

    run, grid = begin(tmp_path, hook, secure_aggregation=True)
    with pytest.raises(RunError, match=why):
        after_rounds(run)
    assert all(reply.has_error() for kind, _, reply in grid.crossed if kind == KIND)


def test_a_round_is_answered_once(tmp_path: Path) -> None:
    """The same question a second time, and the same round with other weights."""
    kept: list[Message] = []

    def hook(kind: str, silo: int, question: Message) -> None:
        if kind == KIND and silo == VICTIM:
            kept.append(question)

    run, grid = begin(tmp_path, hook, secure_aggregation=True, num_clients=3, train_steps=2)
    after_rounds(run)
    replayed = kept[0]
    (answer,) = grid.send_and_receive([replayed])
    assert "this attempt was answered before" in answer.error.reason
    config_of(replayed).update({"attempt": "second", "steps": 3})
    (answer,) = grid.send_and_receive([replayed])
    assert "step 1 was asked before, about something else" in answer.error.reason


def test_the_control_without_an_attack_everybody_is_in_the_sum(tmp_path: Path) -> None:
    run, grid = begin(tmp_path, secure_aggregation=True, train_steps=2)
    before = after_rounds(run, 0)
    assert largest_difference(after_rounds(run), before) > 0
    assert grid.asked("query.reveal") == [0, 1, 2, 3]
