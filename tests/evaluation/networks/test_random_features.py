from __future__ import annotations

import numpy as np
import pytest

from experiments.detectors import faulty_sets, take
from fedsynth.data import LabelledImages, load_dataset
from fedsynth.errors import UserError
from fedsynth.evaluation import frechet_distance
from fedsynth.evaluation.networks.random_features import RANDOM_FEATURES, RandomFeatures, trusted_extractor

HASH = "d2315d447d7bc0fa3336bebc65e927273bd6e7938fddad4c29c4af4a4852000e"


@pytest.fixture(scope="module")
def network() -> RandomFeatures:
    return RandomFeatures()


def test_weights_are_the_same_for_ever(network: RandomFeatures) -> None:
    """Otherwise a silo and a server of two versions measure in two spaces: a change needs another name."""
    assert network.content_hash == HASH
    assert trusted_extractor(RANDOM_FEATURES).content_hash == HASH
    with pytest.raises(UserError, match="unknown extractor 'random-feature': did you mean 'random-features'"):
        trusted_extractor("random-feature")


@pytest.mark.parametrize("shape", [(8, 8, 1), (9, 8, 3), (28, 28, 1), (33, 40, 3), (64, 64, 3), (200, 130, 1)])
def test_images_of_every_size_and_depth_are_seen(network: RandomFeatures, shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, *shape), np.uint8)
    features = network.extract(images).features
    assert (features.shape, features.dtype) == ((5, 32), np.float32)
    assert np.linalg.norm(features, axis=1).min() > 0.1
    assert np.linalg.norm(features, axis=1).max() < 1.0


def test_grey_images_are_seen_as_colour_ones(network: RandomFeatures) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 1), np.uint8)
    expected = network.extract(np.repeat(grey, 3, axis=3)).features
    assert network.extract(grey).features == pytest.approx(expected, abs=1e-6)


def test_every_pixel_counts(network: RandomFeatures) -> None:
    images = np.full((65, 8, 8, 1), 128, np.uint8)
    images[np.arange(64), np.arange(64) // 8, np.arange(64) % 8] = 255
    features = network.extract(images).features
    assert (np.linalg.norm(features[:64] - features[64], axis=1) > 1e-3).all()


def test_clipping_hardly_acts_on_digits(network: RandomFeatures) -> None:
    train, _ = load_dataset("digits")
    assert 0.5 < np.linalg.norm(network.extract(train.images).features, axis=1).max() < 1.0


def test_faults_of_a_set_are_far_from_real_images_and_real_images_near(network: RandomFeatures) -> None:
    """Multiples of the distance of fresh real images, measured over three splits: 6.5, 2.5, 49 and 56; one class
    missing: 1.4. A classifier of real digits says 38, 2.7, 135, 36 and 5.7: it sees missing classes far better.
    """
    train, test = load_dataset("digits")
    trained_on, unseen = take(train, len(test), np.random.default_rng(0))
    sets = faulty_sets(trained_on, unseen, 0)
    without = np.flatnonzero(unseen.labels != 3)
    sets["9 of 10 classes"], _ = take(unseen.subset(without), len(test), np.random.default_rng(0))
    real = network.extract(test.images).features

    def distance(images: LabelledImages) -> float:
        return frechet_distance(real, network.extract(images.images).features)

    found = {name: distance(images) for name, images in sets.items()}
    fresh = found["fresh real images"]
    assert found["other fresh real images"] < 1.2 * fresh
    assert found["9 of 10 classes"] > 1.2 * fresh
    assert found["nearest to the class means"] > 2 * fresh
    assert found["5 of 10 classes"] > 4 * fresh
    assert min(found["blurred"], found["uniform noise"]) > 20 * fresh
