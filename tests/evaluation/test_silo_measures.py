from __future__ import annotations

import numpy as np
import pytest
import torch

from fedsynth.errors import UserError
from fedsynth.evaluation import DomainClassifier, extract_features, precision_recall_density_coverage
from fedsynth.evaluation.manifold import inside_balls, neighbour_radii
from fedsynth.evaluation.networks.domain_classifier import predict_labels
from fedsynth.evaluation.networks.random_features import RandomFeatures
from fedsynth.evaluation.silo_measures import Balls, hash_weights, load_classifier, measure_held_out
from fedsynth.spec import ImageSpec

DIGITS = ImageSpec(1, 8, tuple("0123456789"))


def test_measures_of_held_out_images_by_hand(digits, classifier: DomainClassifier) -> None:
    labels = digits.test_labels[:60].copy()
    labels[:9] = (labels[:9] + 1) % 9
    network, images = RandomFeatures(), digits.test_images[:60]
    real, synthetic = (network.extract(part).features for part in (images, digits.train_images[:100]))
    manifold = Balls(synthetic, neighbour_radii(synthetic, 5))
    measures = measure_held_out(classifier, network, images, labels, manifold)
    distances = np.linalg.norm(synthetic[:, None].astype(float) - synthetic, axis=2)
    radii = np.sort(distances, axis=1)[:, 5]
    inside = (np.linalg.norm(real[:, None].astype(float) - synthetic, axis=2) <= radii).any(axis=1)
    right = predict_labels(classifier, images) == labels
    assert measures.right_inside == sum(right & inside)
    assert measures.right_outside == sum(right & ~inside)
    assert measures.wrong_inside == sum(~right & inside)
    assert measures.wrong_outside == sum(~right & ~inside)
    assert (measures.n, measures.accuracy, measures.recall) == (60, right.mean(), inside.mean())
    assert 0.5 < measures.recall < 1
    assert measures.accuracy < 0.9
    assert measures.recall == precision_recall_density_coverage(real, synthetic, 5)["recall"]


def test_another_image_in_the_place_of_one_moves_one_image_between_cells(digits, classifier: DomainClassifier) -> None:
    """What the noise is scaled by, whatever balls the server sends."""
    network, rng = RandomFeatures(), np.random.default_rng(0)
    images, labels = digits.test_images[:12].copy(), digits.test_labels[:12]
    manifold = Balls(network.extract(digits.train_images[:50]).features, rng.uniform(0, 0.3, 50))

    def cells() -> np.ndarray:
        measures = measure_held_out(classifier, network, images, labels, manifold)
        return np.array(list(vars(measures).values()))

    moved = []
    for row in range(12):
        before, kept = cells(), images[row].copy()
        images[row] = rng.integers(0, 256, images[row].shape)
        moved.append(np.abs(cells() - before).sum())
        images[row] = kept
    assert max(moved) == 2
    assert cells().sum() == 12


@pytest.mark.parametrize(("n", "m", "k"), [(30, 20, 1), (130, 40, 5)])
def test_recall_is_what_the_paper_says(n: int, m: int, k: int) -> None:
    rng = np.random.default_rng(n)
    real, synthetic = rng.normal(size=(n, 4)), rng.normal(size=(m, 4)) + 1
    share = inside_balls(real, synthetic, neighbour_radii(synthetic, k)).mean()
    assert share == precision_recall_density_coverage(real, synthetic, k)["recall"]
    assert 0 < share < 1


def test_border_of_a_ball_belongs_to_it() -> None:
    centres = np.array([[0.0, 0.0], [1.0, 0.0], [3.0, 0.0]])
    radii = neighbour_radii(centres, 1)
    assert radii == pytest.approx([1, 1, 2])
    points = np.array([[-1.0, 0.0], [5.0, 0.0], [-1.0 - 1e-9, 0.0], [5.1, 0.0]])
    assert inside_balls(points, centres, radii).tolist() == [True, True, False, False]


@pytest.mark.parametrize("k", [0, 6])
def test_balls_need_k_other_samples(k: int) -> None:
    with pytest.raises(UserError, match=f"k = {k}: allowed is 1 to 5"):
        neighbour_radii(np.eye(6), k)


def test_classifier_arrives_as_it_was_and_draws_no_random_number(digits, classifier: DomainClassifier) -> None:
    weights = classifier.state_dict()
    before = torch.get_rng_state()
    arrived = load_classifier(weights, DIGITS, hash_weights(weights))
    assert torch.equal(torch.get_rng_state(), before)
    assert not arrived.training
    images = digits.test_images[:20]
    np.testing.assert_array_equal(extract_features(arrived, images), extract_features(classifier, images))


def test_hash_knows_every_value_name_and_type_but_no_order() -> None:
    weights = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[3.0]])}
    changed = [
        {**weights, "a": torch.tensor([1.0, 2.0000002])},
        {**weights, "a": torch.tensor([[1.0, 2.0]])},
        {**weights, "a": torch.tensor([1.0, 2.0], dtype=torch.float64)},
        {"c": weights["a"], "b": weights["b"]},
        {"a": weights["a"]},
    ]
    hashes = {hash_weights(other) for other in changed}
    assert len(hashes - {hash_weights(weights)}) == 5
    assert hash_weights(dict(reversed(weights.items()))) == hash_weights(weights)


def test_other_weights_are_refused(classifier: DomainClassifier) -> None:
    weights = classifier.state_dict()
    with pytest.raises(UserError, match="weights-hash"):
        load_classifier({**weights, "head.bias": weights["head.bias"] + 1e-6}, DIGITS, hash_weights(weights))
    fewer = {name: tensor for name, tensor in weights.items() if name != "head.bias"}
    coloured, one_class = ImageSpec(3, 8, DIGITS.classes), ImageSpec(1, 8, ("a",))
    for misfit, spec in ((fewer, DIGITS), (weights, coloured), (weights, one_class)):
        with pytest.raises(UserError, match="one fedsynth"):
            load_classifier(misfit, spec, hash_weights(misfit))
