from __future__ import annotations

import numpy as np
import pytest
from scipy.special import betainc

from fedsynth.diffusion.augmentation import exact_variants
from fedsynth.errors import UserError
from fedsynth.evaluation.memorisation import Forms, copied_share, memorisation, memorisation_of_images


def distance(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.sqrt(sum((a - b) ** 2 for a, b in zip(x.tolist(), y.tolist(), strict=True))))


def oracle(synthetic: np.ndarray, train: np.ndarray, test: np.ndarray) -> dict[str, float]:
    """The definitions, one pair at a time."""

    def nearest(x: np.ndarray, skip: int | None = None) -> tuple[float, int]:
        return min((distance(x, y), i) for i, y in enumerate(train) if i != skip)

    def authentic(x: np.ndarray) -> bool:
        to_train, index = nearest(x)
        return to_train > nearest(train[index], skip=index)[0]

    of_synthetic, of_test = ([nearest(x)[0] for x in points] for points in (synthetic, test))
    limit = np.percentile(of_test, 5)
    return {
        "nearest-train-distance": np.median(of_synthetic),
        "test-nearest-train-distance": np.median(of_test),
        "copy-distance": limit,
        "nearest-neighbour-ratio": np.median(of_synthetic) / np.median(of_test),
        "copied-share": np.mean([d <= limit for d in of_synthetic]),
        "authenticity": np.mean([authentic(x) for x in synthetic]),
        "test-authenticity": np.mean([authentic(x) for x in test]),
    }


def test_agrees_with_a_double_loop_over_several_blocks(monkeypatch):
    offset = 1e7
    monkeypatch.setattr("fedsynth.evaluation.manifold.ROWS_PER_BLOCK", 7)
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(40, 3)) + offset, rng.normal(size=(25, 3)) + offset
    copies = train[:10] + 0.05 * rng.normal(size=(10, 3))
    synthetic = np.concatenate([copies, rng.normal(size=(20, 3)) + offset])
    expected = oracle(synthetic, train, test)
    measured = memorisation(synthetic, train, test).row()
    assert measured == pytest.approx(
        {**expected, "synthetic-count": 30, "train-count": 40, "test-count": 25}, rel=1e-12
    )
    assert 0 < expected["copied-share"] < 1
    assert 0 < expected["authenticity"] < 1
    assert 0 < expected["test-authenticity"] < 1


def test_the_training_set_itself_is_one_big_copy():
    rng = np.random.default_rng(1)
    train, test = rng.normal(size=(300, 50)) + 1e6, rng.normal(size=(50, 50)) + 1e6
    copied = memorisation(rng.permutation(train), train, test)
    assert copied.nearest_train_distance == copied.nearest_neighbour_ratio == copied.authenticity == 0.0
    assert copied.copied_share == 1.0
    assert copied.test_authenticity > 0.3


def test_a_copy_of_an_image_that_occurs_twice_is_not_authentic():
    rng = np.random.default_rng(2)
    train = np.repeat(rng.normal(size=(50, 4)), 2, axis=0)
    assert memorisation(train[::2], train, rng.normal(size=(30, 4))).authenticity == 0.0


@pytest.mark.parametrize("dimension", [1, 3])
def test_fresh_draws_look_like_the_test_set(dimension):
    rng = np.random.default_rng(3)
    fresh = memorisation(*rng.random((3, 3000, dimension)))
    assert fresh.nearest_neighbour_ratio == pytest.approx(1.0, abs=0.06)
    assert fresh.copied_share == pytest.approx(0.05, abs=0.015)
    # Not authentic = two uniform points are each other's nearest: the volume of a ball by that of the union of two
    # whose centres lie one radius apart.
    mutual = 1 / (2 - betainc((dimension + 1) / 2, 0.5, 0.75))
    assert fresh.authenticity == pytest.approx(1 - mutual, abs=0.04)
    assert fresh.test_authenticity == pytest.approx(1 - mutual, abs=0.04)


@pytest.mark.parametrize(
    ("synthetic", "test", "message"),
    [
        (np.zeros((5, 2)), np.ones((5, 3)), "unequal numbers of values.*'synthetic': 2"),
        (np.full((5, 3), np.nan), np.ones((5, 3)), "synthetic: features of 5 of 5"),
        (np.zeros((5, 3)), np.ones((1, 3)), r"test: 1 sample\(s\)"),
        (np.zeros((5, 3)), np.eye(3), "more than half of the samples are training samples"),
    ],
)
def test_unusable_sets_are_refused(synthetic, test, message):
    with pytest.raises(UserError, match=message):
        memorisation(synthetic, np.eye(3), test)


def test_the_share_of_copies_is_the_same_part_by_part(monkeypatch):
    rng = np.random.default_rng(4)
    train, test = rng.integers(0, 256, (2, 61, 4, 4, 3), dtype=np.uint8)
    noisy = np.clip(train[:20] + rng.normal(0, 80, (20, 4, 4, 3)), 0, 255).astype(np.uint8)
    synthetic = np.concatenate([train[20:25], noisy, rng.integers(0, 256, (10, 4, 4, 3), dtype=np.uint8)])
    whole = memorisation(*(images.reshape(len(images), -1) for images in (synthetic, train, test))).copied_share
    assert 0.2 < whole < 0.9
    for values in (1, 48 * 7, train.size):
        monkeypatch.setattr("fedsynth.evaluation.memorisation._PART_VALUES", values)
        assert copied_share(synthetic, train, test) == whole
    with pytest.raises(UserError, match="more than half of the samples are training samples"):
        copied_share(synthetic, train, train)
    with pytest.raises(UserError, match=r"train: 1 sample\(s\)"):
        copied_share(synthetic, train[:1], test)


def coarse(images: np.ndarray) -> np.ndarray:
    """A stand-in for an autoencoder: every block of 4x4 pixels becomes its mean."""
    n, height, width, channels = images.shape
    blocks = images.reshape(n, height // 4, 4, width // 4, 4, channels).mean(axis=(2, 4))
    return blocks.round().astype(np.uint8).repeat(4, axis=1).repeat(4, axis=2)


def test_copies_that_passed_an_autoencoder_are_found_and_fresh_images_are_none(monkeypatch):
    rng = np.random.default_rng(5)
    # Fine texture, which the autoencoder loses, is most of the distance between two images.
    places = rng.normal(128, 8, (1200, 2, 2, 1)).repeat(4, axis=1).repeat(4, axis=2)
    images = (places + rng.normal(0, 30, (1200, 8, 8, 1))).clip(0, 255).astype(np.uint8)
    train, test, others = np.split(images, 3)
    forms = Forms(reconstruct=coarse)
    copies = memorisation_of_images(coarse(train), train, test, forms)
    assert (copies.copied_share, copies.authenticity, copies.nearest_train_distance) == (1, 0, 0)
    assert copies.train_count == 400
    fresh = memorisation_of_images(coarse(others), train, test, forms)
    assert fresh.copied_share == pytest.approx(0.05, abs=0.03)
    assert fresh.nearest_neighbour_ratio == pytest.approx(1, abs=0.1)
    assert fresh.authenticity == pytest.approx(fresh.test_authenticity, abs=0.08)
    near_the_image_itself = memorisation_of_images(train, train, test, forms)
    assert (near_the_image_itself.copied_share, near_the_image_itself.authenticity) == (1, 0)
    monkeypatch.setattr("fedsynth.evaluation.memorisation._PART_VALUES", 64 * 90)
    assert copied_share(coarse(train), train, test, forms) == 1
    assert copied_share(coarse(others), train, test, forms) == fresh.copied_share


def test_copies_that_are_mirrored_or_turned_are_found_and_fresh_images_are_none():
    rng = np.random.default_rng(6)
    train, test, fresh = rng.integers(0, 256, (3, 1200, 4, 4, 1), dtype=np.uint8)
    turned = np.rot90(train[:, :, ::-1], 3, (1, 2))
    assert memorisation_of_images(turned, train, test).copied_share < 0.15
    forms = Forms(exact_variants(["flip", "rotate90"]), lambda images: images // 2)
    for synthetic in (turned, turned // 2):
        found = memorisation_of_images(synthetic, train, test, forms)
        assert (found.copied_share, found.authenticity, found.train_count) == (1, 0, 1200)
        assert copied_share(synthetic, train, test, forms) == 1
    among_all = memorisation_of_images(fresh, train, test, Forms(exact_variants(["flip", "rotate90"])))
    assert among_all.copied_share == pytest.approx(0.05, abs=0.03)
    assert among_all.authenticity == pytest.approx(among_all.test_authenticity, abs=0.08)


def test_neither_form_of_a_training_image_is_its_own_neighbour():
    train, test = np.array([[0.0], [10.0], [30.0]]), np.array([[5.0], [40.0]])
    forms = np.concatenate([train, train + 1])
    # Nearest are 0, 11 and 30, of which those of other images are 10, 10 and 19 away.
    measured = memorisation(np.array([[-9.5], [20.4], [26.0]]), forms, test, 2)
    assert measured.authenticity == 0
    measured = memorisation(np.array([[-10.5], [20.4], [26.0]]), forms, test, 2)
    assert measured.authenticity == pytest.approx(1 / 3)
