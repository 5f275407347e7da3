from __future__ import annotations

import numpy as np
import pytest

from fedsynth.errors import UserError
from fedsynth.evaluation import frechet_distance
from fedsynth.evaluation.feature_statistics import FeatureStatistics, checked, clip, frechet_distance_of_statistics

SILO_SIZES = (2, 3, 5, 9, 17, 33, 65, 129, 257, 480)


def merged(features: np.ndarray) -> FeatureStatistics:
    """Statistics of ten unequal silos, merged in a scrambled order."""
    silos = np.split(features, np.cumsum(SILO_SIZES)[:-1])
    parts = [FeatureStatistics.of(silo) for silo in silos]
    return FeatureStatistics.merged([parts[i] for i in np.random.default_rng(0).permutation(10)])


def draw(seed: int, offset: float = 0.0, rank: int = 12) -> np.ndarray:
    """1,000 features of norm below 1 in 12 dimensions, in a subspace of ``rank`` dimensions around an offset."""
    rng = np.random.default_rng(seed)
    spread = rng.normal(size=(1000, rank)) @ rng.normal(size=(rank, 12)) / np.sqrt(rank)
    return 0.4 * spread / np.linalg.norm(spread, axis=1).max() + offset


def test_merged_moments_are_the_central_ones():
    features = draw(0, offset=0.1)
    together = merged(features)
    assert together.n == 1000
    assert together.mean == pytest.approx(features.mean(axis=0), rel=1e-12)
    assert together.covariance == pytest.approx(np.cov(features.T), rel=1e-10, abs=1e-12)
    assert together.products == pytest.approx(sum(np.outer(x, x) for x in features) / 1000, rel=1e-12)


@pytest.mark.parametrize(("offset", "rank", "size"), [(0.0, 12, 1.0), (0.1, 12, 1.0), (0.15, 4, 1.0), (0.2, 12, 1e-4)])
def test_ten_unequal_silos_give_the_central_distance_without_a_shift(offset, rank, size):
    # The last: features whose deviation is a ten-thousandth of their length.
    real, synthetic = (size * draw(seed, 0, rank) + offset for seed in (1, 2))
    measured = frechet_distance_of_statistics(merged(real), FeatureStatistics.of(synthetic))
    assert measured == pytest.approx(frechet_distance(real, synthetic), rel=1e-6, abs=1e-12)


def test_long_features_are_clipped_and_short_ones_are_not():
    features = np.array([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    assert clip(features) == pytest.approx(np.array([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]))
    assert FeatureStatistics.of(features).mean == pytest.approx([0.3, 0.4])


def test_one_image_moves_the_sums_by_its_norm_at_most():
    rng = np.random.default_rng(3)
    for scale in (0.1, 1.0, 1e30):
        features = rng.normal(size=(50, 12)) * scale
        one, other = FeatureStatistics.of(features), FeatureStatistics.of(features[1:])
        assert np.linalg.norm(50 * one.mean - 49 * other.mean) <= 1 + 1e-12
        assert np.linalg.norm(50 * one.products - 49 * other.products) <= 1 + 1e-12


def test_parts_that_cannot_be_merged_are_refused():
    features = draw(7)
    with pytest.raises(ValueError, match="different features"):
        FeatureStatistics.merged([FeatureStatistics.of(features), FeatureStatistics.of(features[:, :5])])
    with pytest.raises(ValueError, match="no statistics"):
        FeatureStatistics.merged([])
    with pytest.raises(ValueError, match="real features have 12 dimensions, synthetic features 5"):
        frechet_distance_of_statistics(FeatureStatistics.of(features), FeatureStatistics.of(features[:, :5]))


def test_features_with_nan_are_refused():
    with pytest.raises(UserError, match="features: features of 2 of 2"):
        FeatureStatistics.of(np.full((2, 3), np.nan))


@pytest.mark.parametrize(("offset", "count"), [(0.0, 2), (0.1, 5), (0.1, 1000)])
def test_honest_answers_pass(offset, count):
    features = draw(9, offset)[:count]
    answer = FeatureStatistics.of(features)
    accepted = checked(answer.n, answer.mean, answer.products, 12)
    assert accepted.mean == pytest.approx(features.mean(axis=0), rel=1e-12)
    constant = FeatureStatistics.of(np.repeat(features[:1], count, axis=0))
    assert checked(count, constant.mean, constant.products, 12).noise == 0


@pytest.mark.parametrize("n", [1, 20.0, True, None])
def test_too_few_or_strange_counts_are_refused(n):
    answer = FeatureStatistics.of(draw(11))
    with pytest.raises(ValueError, match=r"n = .*expected an integer of at least 2"):
        checked(n, answer.mean, answer.products, 12)


def broken(**changes: np.ndarray) -> dict[str, np.ndarray]:
    answer = FeatureStatistics.of(draw(12))
    return {"mean": answer.mean, "products": answer.products, **changes}


HONEST = broken()
UPPER = np.triu(HONEST["products"])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (broken(mean=HONEST["mean"][:5]), r"mean: expected float64 \(12,\), got float64 \(5,\)"),
        (broken(mean=HONEST["mean"] * np.nan), "mean: 12 of 12 values are NaN"),
        (broken(products=HONEST["products"][:, :5]), r"products: expected float64 \(12, 12\)"),
        (broken(products=np.diag(np.full(12, np.inf))), "products: 12 of 144 values are NaN or infinite"),
        (broken(products=np.diag(np.full(12, 1.1))), "products: 1.1 is more than the mean of features of norm 1"),
        (broken(products=np.diag(np.full(12, 0.1))), "products: trace 1.2"),
        (broken(products=UPPER), "products are not symmetric"),
        (broken(products=HONEST["products"] - 2e-2 * np.trace(HONEST["products"]) * np.eye(12)), "smallest eigenvalue"),
        (broken(mean=HONEST["mean"] + 0.5), "not positive semi-definite"),
    ],
)
def test_answers_that_no_features_give_are_refused(answer, message):
    with pytest.raises(ValueError, match=message):
        checked(1000, answer["mean"], answer["products"], 12)


def test_noise_is_allowed_what_it_does_and_no_more():
    answer, rng = FeatureStatistics.of(draw(13)), np.random.default_rng(0)
    for noise in (1e-3, 0.1):
        drawn = np.triu(rng.normal(scale=noise, size=(12, 12)))
        products = answer.products + (drawn + drawn.T) / 2
        mean = answer.mean + rng.normal(scale=noise, size=12)
        noisy = checked(1000, mean, products, 12, noise)
        assert np.linalg.eigvalsh(noisy.covariance)[0] < 0
        with pytest.raises(ValueError, match="not positive semi-definite"):
            checked(1000, mean, products, 12, noise * 1e-4)
        # What is left of the covariance is one: no distance is NaN or negative.
        assert 0 < frechet_distance_of_statistics(noisy, answer) < 30 * noise
    with pytest.raises(ValueError, match=r"noise = 1\.5: must be 0 to 1"):
        checked(1000, answer.mean, answer.products, 12, 1.5)


def test_noise_of_merged_statistics_is_that_of_the_weighted_mean():
    one, other = (FeatureStatistics.of(draw(seed)[:count]) for seed, count in ((1, 300), (2, 100)))
    parts = [FeatureStatistics(part.n, part.mean, part.products, noise) for part, noise in ((one, 0.4), (other, 0.8))]
    assert FeatureStatistics.merged(parts).noise == pytest.approx(np.hypot(0.75 * 0.4, 0.25 * 0.8))
