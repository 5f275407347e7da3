from __future__ import annotations

import numpy as np
import pytest
import torch

from fedsynth.errors import UserError
from fedsynth.evaluation import DomainClassifier, extract_features, train_domain_classifier
from fedsynth.evaluation.networks.domain_classifier import batches, predict_labels, scale_pixels


def test_pixels_run_from_minus_one_to_one():
    scaled = scale_pixels(np.array([0, 51, 255], dtype=np.uint8))
    np.testing.assert_allclose(scaled, [-1.0, -0.6, 1.0], atol=1e-6)
    assert scaled.dtype == np.float32


def test_classifier_knows_the_real_test_digits(digits, classifier):
    assert (predict_labels(classifier, digits.test_images) == digits.test_labels).mean() >= 0.97


@pytest.mark.parametrize(
    ("side", "grid", "strided"),
    [(8, 8, 1), (28, 28, 3), (31, 31, 3), (32, 16, 2), (45, 22, 2), (64, 16, 2), (128, 16, 2)],
)
def test_large_images_are_brought_to_a_small_grid_at_once(side, grid, strided):
    model = DomainClassifier(3, side, 4)
    first, *others = (layer for layer in model.modules() if isinstance(layer, torch.nn.Conv2d))
    assert first(torch.zeros(1, 3, side, side)).shape[2:] == (grid, grid)
    assert [layer.stride for layer in others] == [(2, 2)] * strided
    # Every pixel is seen, by windows that overlap.
    assert first.kernel_size[0] == 3 * first.stride[0]
    assert first.out_channels == (64 if side >= 32 else 32)
    assert model(torch.zeros(2, 3, side, side + 5))[1].shape == (2, 64)


def test_features_do_not_depend_on_the_batch_size_and_feed_the_head(digits, classifier):
    images = digits.test_images[:50]
    features = extract_features(classifier, images)
    assert features.shape == (50, 64)
    assert features.dtype == np.float32
    np.testing.assert_allclose(extract_features(classifier, images, batch_size=7), features, rtol=1e-4, atol=1e-5)
    logits = features @ classifier.head.weight.detach().numpy().T + classifier.head.bias.detach().numpy()
    np.testing.assert_array_equal(logits.argmax(axis=1), predict_labels(classifier, images))


def test_images_of_other_channels_than_those_of_the_training_are_refused(digits, classifier):
    with pytest.raises(UserError, match=r"3 channel\(s\), the feature classifier was trained on 1; bring both"):
        extract_features(classifier, np.repeat(digits.test_images[:2], 3, axis=3))


def test_training_is_fixed_by_its_seed_and_leaves_the_global_state_alone(digits):
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first, again, other = (
        train_domain_classifier(digits.train_images, digits.train_labels, 10, seed, steps=5) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.rand(1), expected)
    torch.testing.assert_close(first.state_dict(), again.state_dict(), rtol=0, atol=0)
    assert not torch.equal(first.head.weight, other.head.weight)


def test_every_pass_visits_every_image_once():
    visited = batches(count=10, steps=6, batch_size=5, seed=0)
    assert visited.shape == (6, 5)
    for visits in visited.view(3, 10).tolist():
        assert sorted(visits) == list(range(10))


@pytest.mark.parametrize("shape", [(9, 13, 3), (32, 32, 3)])
def test_bright_and_dark_images_are_told_apart_at_any_size(shape):
    labels = np.arange(16) % 2
    rng = np.random.default_rng(0)
    images = (labels[:, None, None, None] * 128 + rng.integers(0, 128, (16, *shape))).astype(np.uint8)
    model = train_domain_classifier(images, labels, 2, seed=0, steps=20, batch_size=16)
    np.testing.assert_array_equal(predict_labels(model, images), labels)


def test_a_set_smaller_than_a_batch_or_without_some_classes_trains(digits):
    model = train_domain_classifier(digits.train_images[:3], np.array([4, 4, 4]), 10, seed=0, steps=30)
    np.testing.assert_array_equal(predict_labels(model, digits.test_images[:20]), np.full(20, 4))


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((4, 8, 8, 1)), np.zeros(4, int), "uint8"),
        (np.zeros((4, 8, 8), np.uint8), np.zeros(4, int), r"\(N, H, W, C\)"),
        (np.zeros((0, 8, 8, 1), np.uint8), np.zeros(0, int), "no images"),
        (np.zeros((4, 7, 8, 1), np.uint8), np.zeros(4, int), "8 x 8"),
        (np.zeros((4, 8, 8, 4), np.uint8), np.zeros(4, int), "1 or 3 channels"),
        (np.zeros((4, 8, 8, 1), np.uint8), np.zeros(3, int), "4 integer labels"),
        (np.zeros((4, 8, 8, 1), np.uint8), np.zeros(4), "integer labels"),
        (np.zeros((4, 8, 8, 1), np.uint8), np.array([0, 1, 2, 10]), "0 to 9"),
        (np.zeros((4, 8, 8, 1), np.uint8), np.array([0, 1, -1, 2]), "0 to 9"),
    ],
)
def test_unusable_images_and_labels_are_refused(images, labels, message):
    with pytest.raises(UserError, match=message):
        train_domain_classifier(images, labels, 10, seed=0, steps=2)
