from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from flwr.app import Message
from hand_made import bare_reply, error_reply, request_to
from tiny_measurement import NAMES, Run, Tamper, central_distance

import strategies.results.federated_evaluation
from fedsynth.evaluation import DomainClassifier
from fedsynth.messages import wire
from strategies.results.federated_evaluation import SiloEvaluation, gather


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def done(run: Run) -> SiloEvaluation:
    return run.measured()


@pytest.fixture(scope="module")
def classifier(run: Run) -> DomainClassifier:
    return run.classifier()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(autouse=True)
def info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fedsynth")


def spoil(kind: str, change: Callable[[Message], Message | None]) -> Tamper:
    """Change what silo-1 answers to one kind of message."""

    def tamper(replies: list[Message]) -> list[Message]:
        for i, reply in enumerate(replies):
            if reply.metadata.message_type == kind and wire.silo_key(reply)[0] == 1:
                replies[i] = change(reply) or reply
        return replies

    return tamper


def change_sums(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Message], None]:
    def to_changed(reply: Message) -> None:
        sums = wire.decode_tensors(wire.array_record(reply, wire.ARRAYS))
        reply.content[wire.ARRAYS] = wire.encode_tensors({**sums, name: change(sums[name])})

    return to_changed


def say(key: str, value: Any) -> Callable[[Message], None]:
    def to_said(reply: Message) -> None:
        wire.metrics(reply)[key] = value

    return to_said


def other_hash(reply: Message) -> None:
    wire.config(reply)["weights-hash"] = "0" * 64


def no_array(reply: Message) -> None:
    reply.content[wire.ARRAYS] = wire.encode_tensors({wire.IMAGES: torch.zeros((119, 8, 8, 1))})


def no_record(reply: Message) -> None:
    del reply.content[f"{wire.ARRAYS}#0"]


def fail(reply: Message) -> Message:
    request = request_to(101)
    request.metadata.__dict__["_message_id"] = reply.metadata.reply_to_message_id
    return error_reply(request, "silo-1: OSError: no space left")


BAD_STATISTICS = {
    "nan": (change_sums(wire.TOTAL, lambda total: total * math.nan), "total: 64 of 64 values are NaN"),
    "infinite": (change_sums(wire.PRODUCTS, lambda products: products / 0), "products: "),
    "not psd": (change_sums(wire.PRODUCTS, lambda products: -products), "not positive semi-definite"),
    "not symmetric": (change_sums(wire.PRODUCTS, lambda products: products.triu()), "not symmetric"),
    "single precision": (change_sums(wire.PRODUCTS, torch.Tensor.float), "expected float64 (64, 64), got float32"),
    "of images": (no_array, "arrays ['images']"),
    "nothing": (no_record, "no array record 'arrays'"),
    "huge n": (say("num-examples", 10**9), "from 0 to max-silo-images"),
    "negative n": (say("num-examples", -5), "from 0 to max-silo-images"),
    "n that is no count": (say("num-examples", 119.0), "from 0 to max-silo-images"),
    "other hash": (other_hash, "weights-hash: measured with another classifier"),
    "error": (fail, "silo-1: OSError: no space left"),
}
BAD_MEASURES = {
    "nan": (say("coverage", math.nan), "coverage = nan"),
    "too good": (say("label-correct", [40] * 10), "must be 0 to"),
    "other classes": (say("label-counts", [36]), "do not fit 10 classes"),
    "fractions": (say("label-correct", [0.5] * 10), "whole numbers"),
    "huge n": (say("num-examples", 10**9), "from 0 to max-silo-images"),
    "n of others": (say("num-examples", 35), "do not fit 10 classes and 35 images"),
    "other hash": (other_hash, "weights-hash: measured with another classifier"),
    "error": (fail, "silo-1: OSError: no space left"),
}


@pytest.mark.parametrize("wrong", BAD_STATISTICS)
def test_silo_with_bad_statistics_is_left_out_of_the_distance_alone(
    wrong: str,
    done: SiloEvaluation,
    run: Run,
    classifier: DomainClassifier,
    shared: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    change, said = BAD_STATISTICS[wrong]
    measured = Run(shared, spoil(wire.STATISTICS, change)).measured()
    assert list(measured.real) == ["silo-0", "silo-2"]
    assert measured.held_out == done.held_out
    left = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert len(left) == 1
    assert "silo-1" in left[0]
    assert said in left[0]
    expected = central_distance([run.silos[0], run.silos[2]], run, classifier)
    assert measured.row()["silo-frechet-distance"] == pytest.approx(expected, rel=1e-6)
    assert "Not in the silos' Fréchet distance: silo-1; the log says why." in measured.notes


@pytest.mark.parametrize("wrong", BAD_MEASURES)
def test_silo_with_bad_measures_is_left_out_of_them_alone(
    wrong: str, done: SiloEvaluation, shared: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change, said = BAD_MEASURES[wrong]
    measured = Run(shared, spoil(wire.EVALUATE, change)).measured()
    assert measured.held_out == {name: done.held_out[name] for name in ("silo-0", "silo-2")}
    assert measured.row()["silo-frechet-distance"] == done.row()["silo-frechet-distance"]
    assert measured.row()["silo-measures"]["silo-1"] == {"images": 119}
    assert measured.report_columns("silo-1") == {}
    left = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert len(left) == 1
    assert "silo-1" in left[0]
    assert said in left[0]
    assert "Not in the silos' accuracy and coverage: silo-1; the log says why." in measured.notes


def test_classifier_that_changes_on_its_way_is_not_used(shared: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = Run(shared)
    with mock.patch.object(strategies.results.federated_evaluation, "hash_weights", return_value="f" * 64):
        measured = run.measured()
    assert (measured.real, measured.held_out) == ({}, {})
    # By both questions.
    assert [caplog.text.count(f"answer left out: {name}: UserError: weights-hash") for name in NAMES] == [2, 2, 2]


def test_strangers_are_left_out(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    replies = [bare_reply(request_to(node), {"silo-name": name}) for node, name in ((7, "stranger"), (102, "x"))]
    assert gather(replies, run.task.census, lambda reply: 5) == {"silo-2": 5}
    assert "stranger left out: no silo of this run" in caplog.text
