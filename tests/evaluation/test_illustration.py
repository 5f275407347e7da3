"""Which images a report puts side by side, and where it puts them."""

from __future__ import annotations

import numpy as np
import pytest

from fedsynth.evaluation.illustration import TRIPLES, embed, nearest_triples
from fedsynth.evaluation.image_set import flat
from fedsynth.evaluation.memorisation import Forms


def by_hand(synthetic: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """For every synthetic image its nearest training image, that one's nearest other one, and both distances."""
    s, t = flat(synthetic).astype(float), flat(train).astype(float)
    to_train = np.linalg.norm(s[:, None] - t[None], axis=2)
    among = np.linalg.norm(t[:, None] - t[None], axis=2) + np.diag(np.full(len(t), np.inf))
    nearest = to_train.argmin(1)
    following = among[nearest].argmin(1)
    return nearest, following, to_train.min(1), among[nearest].min(1)


@pytest.mark.parametrize("count", [5, 40])
def test_triples_are_the_closest_pairs_and_a_draw_of_the_rest(count: int) -> None:
    rng = np.random.default_rng(0)
    train = rng.integers(0, 256, (60, 8, 8, 1), dtype=np.uint8)
    synthetic = rng.integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)
    triples = nearest_triples(synthetic, train, 0, 3.5)
    nearest, following, distances, next_distances = by_hand(synthetic, train)
    closest = np.argsort(distances, kind="stable")[: TRIPLES // 2]
    shown = [int(np.flatnonzero((synthetic == image).all((1, 2, 3)))[0]) for image in triples.synthetic]
    assert (triples.num_closest, triples.copy_distance) == (min(TRIPLES // 2, count), 3.5)
    assert shown[: triples.num_closest] == closest.tolist()
    assert len(set(shown)) == len(shown) == min(TRIPLES, count)
    np.testing.assert_array_equal(triples.real, train[nearest[shown]])
    np.testing.assert_array_equal(triples.next_real, train[following[shown]])
    np.testing.assert_allclose(triples.distances, distances[shown], rtol=1e-12)
    np.testing.assert_allclose(triples.next_distances, next_distances[shown], rtol=1e-12)


def test_of_an_autoencoder_the_nearer_form_decides_and_the_image_itself_is_shown() -> None:
    rng = np.random.default_rng(1)
    train = rng.integers(0, 200, (30, 8, 8, 1), dtype=np.uint8)
    triples = nearest_triples(train[:9] + 50, train, 0, 3.5, Forms(reconstruct=lambda images: images + 50))
    assert (triples.distances[: triples.num_closest] == 0).all()
    known = {image.tobytes(): row for row, image in enumerate(train)}
    for synthetic, real, following in zip(triples.synthetic, triples.real, triples.next_real, strict=True):
        assert (synthetic == real + 50).all()
        assert known[following.tobytes()] != known[real.tobytes()]


def test_of_a_mirrored_copy_the_mirrored_image_is_shown() -> None:
    train = np.random.default_rng(2).integers(0, 200, (30, 8, 8, 1), dtype=np.uint8)
    forms = Forms([lambda images: images[:, :, ::-1]], lambda images: images + 50)
    triples = nearest_triples(train[:9, :, ::-1] + 50, train, 0, 3.5, forms)
    assert (triples.distances[: triples.num_closest] == 0).all()
    assert (triples.synthetic == triples.real + 50).all()


def test_far_clusters_stay_apart_in_the_plane() -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(0, 50, (3, 10))
    real_labels, labels = np.repeat([0, 1, 2], 20), np.repeat([0, 1, 2], 10)
    real, synthetic = (centres[of] + rng.normal(0, 1, (len(of), 10)) for of in (real_labels, labels))
    laid_out = embed((real, real_labels), (synthetic, labels), "pixels", seed=0)
    assert laid_out.labels.tolist() == [*real_labels, *labels]
    assert laid_out.synthetic.tolist() == [False] * 60 + [True] * 30
    assert laid_out.space == "pixels"
    distances = np.linalg.norm(laid_out.points[:, None] - laid_out.points[None], axis=2) + np.diag(np.full(90, np.inf))
    np.testing.assert_array_equal(laid_out.labels[distances.argmin(1)], laid_out.labels)
    np.testing.assert_array_equal(
        laid_out.points, embed((real, real_labels), (synthetic, labels), "pixels", seed=0).points
    )


def test_two_and_two_and_all_alike_can_be_laid_out() -> None:
    labels = np.array([0, 1])
    for features in (np.eye(2, 5), np.ones((2, 5))):
        assert np.isfinite(embed((features, labels), (features, labels), "pixels", seed=0).points).all()
