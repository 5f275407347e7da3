from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Message
from one_silo import SPEC, Node, settings_of

from clients.context import open_silo
from fedsynth.data import Silo
from fedsynth.evaluation import DomainClassifier, extract_features
from fedsynth.evaluation.networks.domain_classifier import predict_labels
from fedsynth.evaluation.silo_measures import coverage, hash_weights
from fedsynth.messages import wire

SHIFT = torch.linspace(-1, 1, 64, dtype=torch.float64)
FEATURES = torch.randn((40, 64), generator=torch.Generator().manual_seed(2))


def make_node(tmp_path: Path, image_folder: Callable[[str], Path], holdout_fraction: float) -> Node:
    # Statistics must travel in double precision whatever the other tensors do.
    settings = settings_of(tmp_path, holdout_fraction=holdout_fraction, wire_dtype="float16")
    return Node(settings, SPEC, data_path=str(image_folder("clinic")), silo_name="clinic")


@pytest.fixture
def clinic(tmp_path: Path, image_folder: Callable[[str], Path]) -> Node:
    """Ten images, six of them held out."""
    return make_node(tmp_path, image_folder, 0.6)


@pytest.fixture(scope="module")
def classifier() -> DomainClassifier:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return DomainClassifier(1, 8, 2).eval()


def silo_of(node: Node) -> Silo:
    return open_silo(node.context, node.config, node.spec)


def ask_statistics(
    node: Node,
    classifier: DomainClassifier,
    minimum: int = 5,
    said: str | None = None,
    arrays: ArrayRecord | None = None,
) -> Message:
    weights = classifier.state_dict()
    return node.ask(
        wire.STATISTICS,
        wire.encode_tensors({wire.SHIFT: SHIFT}) if arrays is None else arrays,
        wire.encode_tensors(weights),
        weights_hash=hash_weights(weights) if said is None else said,
        min_statistics_samples=minimum,
    )


def ask_evaluate(node: Node, classifier: DomainClassifier) -> Message:
    arrays = wire.encode_tensors({wire.FEATURES: FEATURES})
    return node.ask(wire.EVALUATE, arrays, weights_hash=hash_weights(classifier.state_dict()))


def reason(answer: Message) -> str:
    assert answer.has_error()
    return str(answer.error.reason)


def test_sums_are_those_of_all_images_held_out_or_not(clinic: Node, classifier: DomainClassifier) -> None:
    answer = ask_statistics(clinic, classifier)
    silo = silo_of(clinic)
    images = np.concatenate([silo.train.images, silo.holdout.images])
    differences = extract_features(classifier, images).astype(np.float64) - SHIFT.numpy()
    sums = wire.decode_tensors(wire.array_record(answer, wire.ARRAYS))
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in sums.items()} == {
        wire.TOTAL: (torch.float64, (64,)),
        wire.PRODUCTS: (torch.float64, (64, 64)),
    }
    assert sums[wire.TOTAL].numpy() == pytest.approx(sum(differences), rel=1e-6, abs=1e-6)
    assert sums[wire.PRODUCTS].numpy() == pytest.approx(sum(np.outer(d, d) for d in differences), rel=1e-6, abs=1e-6)
    assert wire.metrics(answer)["num-examples"] == 10
    assert wire.config(answer)["weights-hash"] == hash_weights(classifier.state_dict())
    assert wire.silo_key(answer) == (0, "clinic")


def test_too_few_images_give_their_count_alone(clinic: Node, classifier: DomainClassifier) -> None:
    answer = ask_statistics(clinic, classifier, minimum=11)
    assert dict(wire.metrics(answer)) == {"num-examples": 10}
    assert not wire.array_names(answer)
    assert wire.array_names(ask_statistics(clinic, classifier, minimum=10))


def test_measures_of_held_out_images_hold_no_array(clinic: Node, classifier: DomainClassifier) -> None:
    ask_statistics(clinic, classifier)
    answer = ask_evaluate(clinic, classifier)
    silo = silo_of(clinic)
    held_out, train = silo.holdout, extract_features(classifier, silo.train.images)
    right = predict_labels(classifier, held_out.images) == held_out.labels
    metrics = dict(wire.metrics(answer))
    assert metrics.pop("seconds") >= 0  # type: ignore[operator]
    assert metrics == {
        "num-examples": 6,
        "label-counts": [sum(held_out.labels == c) for c in (0, 1)],
        "label-correct": [sum(right & (held_out.labels == c)) for c in (0, 1)],
        "coverage": coverage(extract_features(classifier, held_out.images), train, FEATURES.numpy()),
    }
    assert not wire.array_names(answer)
    assert wire.config(answer)["weights-hash"] == hash_weights(classifier.state_dict())


@pytest.mark.parametrize(("fraction", "held_out"), [(0.4, 4), (0.0, 0)])
def test_too_few_held_out_images_give_their_count_alone(
    fraction: float,
    held_out: int,
    tmp_path: Path,
    image_folder: Callable[[str], Path],
    classifier: DomainClassifier,
) -> None:
    node = make_node(tmp_path, image_folder, fraction)
    assert wire.metrics(ask_statistics(node, classifier))["num-examples"] == 10
    answer = ask_evaluate(node, classifier)
    assert dict(wire.metrics(answer)) == {"num-examples": held_out}
    assert not wire.array_names(answer)


def test_classifier_stays_for_the_second_question_even_where_there_are_no_statistics(
    clinic: Node, classifier: DomainClassifier
) -> None:
    ask_statistics(clinic, classifier, minimum=11)
    assert wire.metrics(ask_evaluate(clinic, classifier))["num-examples"] == 6


def test_second_question_alone_cannot_be_answered(clinic: Node, classifier: DomainClassifier) -> None:
    assert "clinic: UserError: this silo has no classifier" in reason(ask_evaluate(clinic, classifier))


def test_classifier_of_another_hash_is_refused_by_both_questions(clinic: Node, classifier: DomainClassifier) -> None:
    assert "clinic: UserError: weights-hash" in reason(ask_statistics(clinic, classifier, said="0" * 64))
    torch.manual_seed(6)
    assert "clinic: UserError: weights-hash" in reason(ask_evaluate(clinic, DomainClassifier(1, 8, 2)))


@pytest.mark.parametrize(
    ("shift", "said"), [(torch.zeros(3), "shift: expected 64"), (torch.full((64,), torch.nan), "shift: expected 64")]
)
def test_bad_shift_is_refused(clinic: Node, classifier: DomainClassifier, shift: torch.Tensor, said: str) -> None:
    assert said in reason(ask_statistics(clinic, classifier, arrays=wire.encode_tensors({wire.SHIFT: shift})))


def test_classifier_that_has_diverged_is_refused(clinic: Node) -> None:
    broken = DomainClassifier(1, 8, 2)
    torch.nn.init.constant_(broken.body[0][0].weight, torch.nan)
    assert "NaN" in reason(ask_statistics(clinic, broken))
