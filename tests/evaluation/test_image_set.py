"""Random subsets: their class shares, and matched pairs."""

from __future__ import annotations

import numpy as np
import pytest

from fedsynth.errors import UserError
from fedsynth.evaluation.image_set import ImageSet, matched_by_class, stratified_subset


def test_a_subset_keeps_class_shares() -> None:
    labels = np.repeat([0, 1, 2], [500, 300, 100])
    rng = np.random.default_rng(0)
    chosen = stratified_subset(labels, 90, rng)
    assert len(set(chosen.tolist())) == 90
    np.testing.assert_allclose(np.bincount(labels[chosen]), [50, 30, 10], atol=2)
    np.testing.assert_array_equal(stratified_subset(labels, 900, rng), np.arange(900))


def numbered(name: str, labels: np.ndarray) -> ImageSet:
    """Every pixel of an image is its position in the set."""
    images = np.broadcast_to(np.arange(len(labels), dtype=np.uint8)[:, None, None, None], (len(labels), 8, 8, 1))
    return ImageSet(name, images, labels)


def test_a_set_s_subset_is_its_own_and_keeps_images_with_their_labels() -> None:
    labels = np.random.default_rng(1).integers(0, 3, 200)
    one, other = numbered("one", labels), numbered("other", labels)
    subset = one.subset(50, seed=4)
    np.testing.assert_array_equal(labels[subset.images[:, 0, 0, 0]], subset.labels)
    np.testing.assert_array_equal(subset.images, one.subset(50, seed=4).images)
    assert (subset.images != one.subset(50, seed=5).images).any()
    assert (subset.images != other.subset(50, seed=4).images).any()
    assert one.subset(200, seed=4) is one


def test_two_sets_are_joined_in_order() -> None:
    both = numbered("a", np.array([0, 1])).joined(numbered("b", np.array([2, 2, 1])))
    assert both.images[:, 0, 0, 0].tolist() == [0, 1, 0, 1, 2]
    assert both.labels.tolist() == [0, 1, 2, 2, 1]


def test_a_single_image_is_refused_by_name_and_key() -> None:
    with pytest.raises(UserError, match=r"^odd ones: 1 image, at least 2 are needed; give more images \(num-samples\)"):
        numbered("odd ones", np.array([0])).check(1, (8, 8, 1))


def test_matched_sides_hold_equally_many_of_every_class() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.permutation(np.repeat([0, 1, 3], [50, 4, 20])), rng.permutation(np.repeat([0, 1, 2], [30, 40, 9]))
    rows, other_rows = matched_by_class(one, other, 1000, rng)
    assert len(set(rows.tolist())) == len(rows)
    assert len(set(other_rows.tolist())) == len(other_rows)
    assert np.bincount(one[rows]).tolist() == np.bincount(other[other_rows]).tolist() == [30, 4]
    rows, other_rows = matched_by_class(one, other, 17, rng)
    assert len(rows) == len(other_rows) == 17
    np.testing.assert_array_equal(np.sort(one[rows]), np.sort(other[other_rows]))


def test_nothing_in_common_matches_nothing() -> None:
    rows, other_rows = matched_by_class(np.array([0, 0]), np.array([1]), 10, np.random.default_rng(0))
    assert len(rows) == len(other_rows) == 0


def test_matching_draws_every_image_equally_often() -> None:
    one, other, rng = np.zeros(20, int), np.zeros(5, int), np.random.default_rng(0)
    hits = np.bincount(np.concatenate([matched_by_class(one, other, 5, rng)[0] for _ in range(800)]), minlength=20)
    # Each is drawn 200 times of 800, standard deviation 12.
    assert (abs(hits - 200) < 50).all()
