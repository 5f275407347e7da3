from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from one_silo import SPEC, Node, policy_file, settings_of

from clients.context import SiloContext
from fedsynth.evaluation import DomainClassifier, extract_features
from fedsynth.evaluation.networks.domain_classifier import predict_labels
from fedsynth.evaluation.silo_measures import coverage, hash_weights
from fedsynth.messages import EvaluateRequest, MessageError, StatisticsRequest, transport

SHIFT = torch.linspace(-1, 1, 64, dtype=torch.float64)
FEATURES = torch.randn((40, 64), generator=torch.Generator().manual_seed(2))


def make_node(tmp_path: Path, image_folder: Path, holdout_fraction: float) -> Node:
    # Statistics must travel in double precision whatever the other tensors do.
    settings = settings_of(tmp_path, holdout_fraction=holdout_fraction, wire_dtype="float16")
    return Node(settings, SPEC, data_path=str(image_folder), silo_name="clinic", policy_path=policy_file(tmp_path))


@pytest.fixture
def clinic(tmp_path: Path, image_folder: Path) -> Node:
    """Ten images, six of them held out."""
    return make_node(tmp_path, image_folder, 0.6)


@pytest.fixture(scope="module")
def classifier() -> DomainClassifier:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return DomainClassifier(1, 8, 2).eval()


def statistics_request(
    classifier: DomainClassifier, minimum: int = 5, stated: str | None = None, shift: torch.Tensor = SHIFT
) -> StatisticsRequest:
    weights = classifier.state_dict()
    return StatisticsRequest(
        weights=transport.encode_tensors(weights),
        weights_hash=hash_weights(weights) if stated is None else stated,
        shift=shift,
        spec=SPEC,
        min_statistics_samples=minimum,
    )


def evaluate_request(classifier: DomainClassifier) -> EvaluateRequest:
    return EvaluateRequest(weights_hash=hash_weights(classifier.state_dict()), features=FEATURES, spec=SPEC)


def test_sums_are_those_of_all_images_held_out_or_not(clinic: Node, classifier: DomainClassifier) -> None:
    answer = clinic.ask(statistics_request(classifier))
    silo = SiloContext(clinic.context).images(SPEC)
    images = np.concatenate([silo.train.images, silo.holdout.images])
    differences = extract_features(classifier, images).astype(np.float64) - SHIFT.numpy()
    assert answer.total is not None
    assert answer.products is not None
    assert answer.total.numpy() == pytest.approx(sum(differences), rel=1e-6, abs=1e-6)
    assert answer.products.numpy() == pytest.approx(sum(np.outer(d, d) for d in differences), rel=1e-6, abs=1e-6)
    assert answer.num_examples == 10


def test_measures_of_held_out_images_hold_no_array(clinic: Node, classifier: DomainClassifier) -> None:
    # The classifier stays for the second question even where there are no statistics.
    with pytest.raises(MessageError, match="10 images are too few"):
        clinic.ask(statistics_request(classifier, 11))
    request = evaluate_request(classifier)
    answer = clinic.ask(request)
    silo = SiloContext(clinic.context).images(SPEC)
    held_out, train = silo.holdout, extract_features(classifier, silo.train.images)
    right = predict_labels(classifier, held_out.images) == held_out.labels
    assert answer.num_examples == 6
    assert answer.label_counts == tuple(sum(held_out.labels == c) for c in (0, 1))
    assert answer.label_correct == tuple(sum(right & (held_out.labels == c)) for c in (0, 1))
    assert answer.coverage == coverage(extract_features(classifier, held_out.images), train, FEATURES.numpy())
    assert not transport.array_names(clinic.send(request))


def test_too_few_images_give_their_count_alone(
    tmp_path: Path, image_folder: Path, classifier: DomainClassifier
) -> None:
    node = make_node(tmp_path, image_folder, 0.4)
    message = node.send(statistics_request(classifier, 11))
    assert message.content.metric_records["metrics"]["num-examples"] == 10
    assert not transport.array_names(message)
    answer = node.ask(evaluate_request(classifier))
    assert (answer.num_examples, answer.label_counts, answer.label_correct, answer.coverage) == (4, (), (), None)


def test_questions_that_cannot_be_answered_are_refused(clinic: Node, classifier: DomainClassifier) -> None:
    assert "clinic: UserError: this silo has no classifier" in clinic.refusal(evaluate_request(classifier))
    refused = clinic.refusal(statistics_request(classifier, stated="0" * 64))
    assert refused.startswith("clinic: UserError: weights-hash")
    torch.manual_seed(6)
    assert "clinic: UserError: weights-hash" in clinic.refusal(evaluate_request(DomainClassifier(1, 8, 2)))
    short = torch.zeros(3, dtype=torch.float64)
    assert "shift: expected 64" in clinic.refusal(statistics_request(classifier, shift=short))
    broken = DomainClassifier(1, 8, 2)
    torch.nn.init.constant_(broken.body[0][0].weight, torch.nan)
    assert "NaN" in clinic.refusal(statistics_request(broken))
