from __future__ import annotations

import numpy as np
import pytest

from fedsynth.errors import UserError
from fedsynth.evaluation import frechet_distance
from fedsynth.evaluation.feature_statistics import FeatureStatistics, checked, frechet_distance_of_statistics

SILO_SIZES = (2, 3, 5, 9, 17, 33, 65, 129, 257, 480)


def merged(features: np.ndarray, shift: np.ndarray | None = None) -> FeatureStatistics:
    """Statistics of ten unequal silos, added up in a scrambled order."""
    silos = np.split(features, np.cumsum(SILO_SIZES)[:-1])
    parts = [FeatureStatistics.of(silo, shift) for silo in silos]
    return FeatureStatistics.merged([parts[i] for i in np.random.default_rng(0).permutation(10)])


def draw(seed: int, offset: float = 0.0, rank: int = 12) -> np.ndarray:
    """1,000 features in 12 dimensions, deviation about 1, in a subspace of ``rank`` dimensions around an offset."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(1000, rank)) @ rng.normal(size=(rank, 12)) / np.sqrt(rank) + offset


def test_merged_moments_are_the_central_ones():
    features = draw(0, offset=3.0)
    together = merged(features)
    assert together.n == 1000
    assert together.mean == pytest.approx(features.mean(axis=0), rel=1e-12)
    assert together.covariance == pytest.approx(np.cov(features.T), rel=1e-10, abs=1e-12)
    assert together.total == pytest.approx(features.sum(axis=0), rel=1e-12)
    assert together.products == pytest.approx(sum(np.outer(x, x) for x in features), rel=1e-12)


@pytest.mark.parametrize(("offset", "rank"), [(0.0, 12), (1e6, 12), (1e3, 4)])
def test_ten_unequal_silos_give_the_central_distance(offset, rank):
    real, synthetic = draw(1, offset, rank), draw(2, offset, rank)
    shift = synthetic.mean(axis=0)
    measured = frechet_distance_of_statistics(merged(real, shift), FeatureStatistics.of(synthetic, shift))
    assert measured == pytest.approx(frechet_distance(real, synthetic), rel=1e-6)


def test_without_a_shift_a_large_offset_cancels():
    # Singular covariances of equal sets: the distance should be 0, and the root of the lost digits stays instead.
    features = draw(5, 1e4, rank=3)
    cancelled = frechet_distance_of_statistics(merged(features), FeatureStatistics.of(features, features[0]))
    centred = frechet_distance_of_statistics(merged(features, features[0]), FeatureStatistics.of(features, features[0]))
    assert centred < 1e-9
    assert cancelled > 1e-7


def test_equal_sets_are_at_distance_zero_whatever_their_shifts():
    features = draw(6, 10.0)
    one, other = FeatureStatistics.of(features), FeatureStatistics.of(features, np.arange(12.0))
    assert frechet_distance_of_statistics(one, other) == pytest.approx(0.0, abs=1e-9)


def test_parts_that_cannot_be_added_are_refused():
    features = draw(7)
    with pytest.raises(ValueError, match="different shifts"):
        FeatureStatistics.merged([FeatureStatistics.of(features), FeatureStatistics.of(features, np.ones(12))])
    with pytest.raises(ValueError, match="different shifts"):
        FeatureStatistics.merged([FeatureStatistics.of(features), FeatureStatistics.of(features[:, :5])])
    with pytest.raises(ValueError, match="no statistics"):
        FeatureStatistics.merged([])
    with pytest.raises(ValueError, match="real features have 12 dimensions, synthetic features 5"):
        frechet_distance_of_statistics(FeatureStatistics.of(features), FeatureStatistics.of(features[:, :5]))


@pytest.mark.parametrize("shift", [np.ones(11), np.full(12, np.nan)])
def test_an_impossible_shift_is_refused(shift):
    with pytest.raises(ValueError, match="shift: expected 12 finite values"):
        FeatureStatistics.of(draw(8), shift)


def test_features_with_nan_are_refused():
    with pytest.raises(UserError, match="features: features of 2 of 2"):
        FeatureStatistics.of(np.full((2, 3), np.nan))


@pytest.mark.parametrize(("offset", "count"), [(0.0, 2), (1e3, 5), (1e3, 1000)])
def test_honest_answers_pass(offset, count):
    features = draw(9, offset)[:count]
    answer = FeatureStatistics.of(features)
    accepted = checked(answer.n, answer.total, answer.products, 12, min_samples=2)
    assert accepted.mean == pytest.approx(features.mean(axis=0), rel=1e-12)
    constant = FeatureStatistics.of(np.repeat(features[:1], count, axis=0), np.full(12, offset))
    assert checked(count, constant.total, constant.products, 12, 2, constant.shift).shift == pytest.approx(offset)


def test_sums_of_float32_features_pass_at_the_ends_of_their_range():
    features = np.full((4, 2), np.finfo(np.float32).max, dtype=np.float32)
    features[::2] *= -1
    answer = FeatureStatistics.of(features)
    accepted = checked(4, answer.total, answer.products, 2, 2)
    assert np.isfinite(frechet_distance_of_statistics(accepted, FeatureStatistics.of(draw(10)[:, :2])))


@pytest.mark.parametrize("n", [19, 20.0, True, None])
def test_too_few_or_strange_counts_are_refused(n):
    answer = FeatureStatistics.of(draw(11))
    with pytest.raises(ValueError, match=r"n = .*expected an integer of at least 20"):
        checked(n, answer.total, answer.products, 12, min_samples=20)


def broken(**changes: np.ndarray) -> dict[str, np.ndarray]:
    answer = FeatureStatistics.of(draw(12))
    return {"total": answer.total, "products": answer.products, **changes}


HONEST = broken()
UPPER = np.triu(HONEST["products"])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (broken(total=HONEST["total"][:5]), r"total: expected float64 \(12,\), got float64 \(5,\)"),
        (broken(total=HONEST["total"] * np.nan), "total: 12 of 12 values are NaN"),
        (broken(products=HONEST["products"][:, :5]), r"products: expected float64 \(12, 12\)"),
        (broken(products=np.diag(np.full(12, np.inf))), "products: 12 of 144 values are NaN or infinite"),
        (broken(products=np.diag(np.full(12, 1e300))), "products: 1e.300 is more than float32 features"),
        (broken(products=UPPER), "products are not symmetric"),
        (broken(products=HONEST["products"] - 2e-2 * np.trace(HONEST["products"]) * np.eye(12)), "smallest eigenvalue"),
        (broken(total=HONEST["total"] + 1e5), "not positive semi-definite"),
    ],
)
def test_answers_that_no_features_give_are_refused(answer, message):
    with pytest.raises(ValueError, match=message):
        checked(1000, answer["total"], answer["products"], 12, min_samples=2)
