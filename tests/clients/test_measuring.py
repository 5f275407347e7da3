from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from class_folders import write_images
from one_silo import SPEC, Node, policy_file, settings_of, simulated

from clients.context import SiloContext
from fedsynth.data import load_federation
from fedsynth.evaluation import DomainClassifier
from fedsynth.evaluation.feature_statistics import FeatureStatistics
from fedsynth.evaluation.manifold import inside_balls
from fedsynth.evaluation.networks.domain_classifier import predict_labels
from fedsynth.evaluation.networks.random_features import RandomFeatures
from fedsynth.evaluation.silo_measures import hash_weights
from fedsynth.messages import EvaluateRequest, StatisticsRequest, transport

Clinic = Callable[..., Node]
CENTRES = RandomFeatures().extract(np.random.default_rng(2).integers(0, 256, (40, 8, 8, 1), np.uint8)).features
RADII = np.full(40, 0.25)


@pytest.fixture
def clinic(tmp_path: Path) -> Clinic:
    """A function that returns the silo of 60 images, 24 of them held out; policy changes by field, settings by key."""
    path = write_images(tmp_path / "clinic", {"even": 40, "odd": 20})

    def silo(settings: dict[str, Any] | None = None, **policy: Any) -> Node:
        # Moments must travel in double precision whatever the other tensors do.
        given = settings_of(tmp_path, **{"holdout_fraction": 0.4, "wire_dtype": "float16", **(settings or {})})
        own = {"data_path": str(path), "silo_name": "clinic", "state_path": str(tmp_path / "own")}
        return Node(given, SPEC, **own, policy_path=policy_file(tmp_path, **policy))

    return silo


@pytest.fixture(scope="module")
def classifier() -> DomainClassifier:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return DomainClassifier(1, 8, 2).eval()


def about_held_out(classifier: DomainClassifier, **changes: Any) -> EvaluateRequest:
    weights = classifier.state_dict()
    given: dict[str, Any] = {
        "weights": transport.encode_tensors(weights),
        "weights_hash": hash_weights(weights),
        "extractor": "random-features",
        "centres": torch.from_numpy(CENTRES),
        "radii": torch.from_numpy(RADII),
        "spec": SPEC,
    }
    return EvaluateRequest(**{**given, **changes})


ABOUT_ALL = StatisticsRequest(extractor="random-features", spec=SPEC)


def test_moments_are_those_of_all_images_held_out_or_not(clinic: Clinic) -> None:
    node = clinic()
    answer, silo = node.ask(ABOUT_ALL), SiloContext(node.context).images(SPEC)
    features = RandomFeatures().extract(np.concatenate([silo.train.images, silo.holdout.images])).features
    expected = FeatureStatistics.of(features)
    assert answer.mean.numpy() == pytest.approx(expected.mean, rel=1e-12)
    assert answer.products.numpy() == pytest.approx(expected.products, rel=1e-12)
    assert (answer.num_examples, answer.noise) == (60, 0)


def test_a_simulated_silo_tells_the_same_and_keeps_nothing(tmp_path: Path) -> None:
    node = simulated(tmp_path)
    answer = node.ask(StatisticsRequest(extractor="random-features", spec=node.spec))
    silo = load_federation(node.config).silo(1, node.config)
    assert answer.num_examples == len(silo.train) + len(silo.holdout) == 39
    assert not list(tmp_path.rglob("released"))


def test_noise_is_that_of_the_policy_and_drawn_once(clinic: Clinic) -> None:
    exact = clinic().ask(ABOUT_ALL)
    kept = clinic(statistics_epsilon=2.0).ask(ABOUT_ALL)
    assert torch.equal(kept.mean, exact.mean), "told before the policy asked for noise"


def test_noisy_moments_are_told_again_to_every_run(clinic: Clinic) -> None:
    noisy = clinic(statistics_epsilon=2.0, count_noise=1.0).ask(ABOUT_ALL)
    settings = {"seed": 7, "holdout_fraction": 0.2, "skip_bad_images": True, "dataset": "imagefolder"}
    again = clinic(settings, statistics_epsilon=9.0).ask(ABOUT_ALL)
    assert torch.equal(noisy.mean, again.mean)
    assert torch.equal(noisy.products, again.products)
    # 2.0 with δ = 1e-5: a standard deviation of 3.5 of 60 images.
    assert noisy.noise == again.noise == pytest.approx(3.5 / 60, rel=0.4)
    silo = SiloContext(clinic().context).images(SPEC)
    features = RandomFeatures().extract(np.concatenate([silo.train.images, silo.holdout.images])).features
    off = noisy.mean.numpy() - FeatureStatistics.of(features).mean
    assert 0.5 * noisy.noise < off.std() < 2 * noisy.noise


def test_measures_of_held_out_images_hold_no_array(clinic: Clinic, classifier: DomainClassifier) -> None:
    node = clinic()
    message = node.send(about_held_out(classifier))
    answer = about_held_out(classifier).reader()(message)
    held_out = SiloContext(node.context).images(SPEC).holdout
    right = predict_labels(classifier, held_out.images) == held_out.labels
    inside = inside_balls(RandomFeatures().extract(held_out.images).features, CENTRES, RADII)
    assert answer.num_examples == 24
    assert (answer.right_inside, answer.right_outside) == (sum(right & inside), sum(right & ~inside))
    assert (answer.wrong_inside, answer.wrong_outside) == (sum(~right & inside), sum(~right & ~inside))
    assert not transport.array_names(message)


def test_counts_of_held_out_images_are_noisy_and_asked_twice_the_same(
    clinic: Clinic, classifier: DomainClassifier
) -> None:
    node = clinic(evaluation_epsilon=1e-5)
    found = [vars(node.ask(about_held_out(classifier))) for _ in range(3)]
    cells = ("right_inside", "right_outside", "wrong_inside", "wrong_outside")
    assert len({tuple(answer[cell] for cell in cells) for answer in found}) == 1
    # Noise of scale 200,000 on cells of 24 in all.
    assert sum(found[0][cell] for cell in cells) == found[0]["num_examples"] != 24


def test_images_read_in_another_way_are_another_question(clinic: Clinic, classifier: DomainClassifier) -> None:
    assert clinic().ask(about_held_out(classifier)).num_examples
    for settings in ({"value_range": "0,4095"}, {"first_page_only": True}):
        refused = clinic({"dataset": "imagefolder", **settings}).refusal(about_held_out(classifier))
        assert "this run has got its one answer" in refused


def test_questions_beyond_the_policy_are_refused_by_its_line(clinic: Clinic, classifier: DomainClassifier) -> None:
    for node in (clinic(least_images=61),):
        for request in (ABOUT_ALL, about_held_out(classifier)):
            said = "line 'least-images = 61': there are fewer images here"
            assert said in node.refusal(request)
    assert "line 'extractors = []'" in clinic(extractors=()).refusal(ABOUT_ALL)
    for request in (StatisticsRequest(extractor="pixels", spec=SPEC), about_held_out(classifier, extractor="pixels")):
        assert "'extractors = [\"random-features\"]': features of 'pixels'" in clinic().refusal(request)
    known = clinic(extractors=("pixels",)).refusal(StatisticsRequest(extractor="pixels", spec=SPEC))
    assert "unknown extractor 'pixels'" in known
    assert "statistics" in clinic(answers=("describe",)).refusal(ABOUT_ALL)


def test_questions_that_cannot_be_answered_are_refused(clinic: Clinic, classifier: DomainClassifier) -> None:
    assert "weights-hash" in clinic().refusal(about_held_out(classifier, weights_hash="0" * 64))
    few = clinic({"holdout_fraction": 0.05})
    assert "fewer than 5 images are held out" in few.refusal(about_held_out(classifier))
    wide = about_held_out(classifier, centres=torch.zeros(40, 33))
    assert "33-dimensional" in clinic().refusal(wide)
