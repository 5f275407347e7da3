from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from clients.noisy_moments import SENSITIVITY, add_gaussian_noise, gaussian_scale
from fedsynth.evaluation.feature_statistics import FeatureStatistics, checked


def delta_of(scale: float, epsilon: float, sensitivity: float) -> float:
    """δ of Gaussian noise by its definition: how much more likely than e^ε outputs are under one of two neighbours."""

    def excess(x: float) -> float:
        return max(0.0, norm.pdf(x, sensitivity, scale) - math.exp(epsilon) * norm.pdf(x, 0, scale))

    # Where the two densities have the ratio e^ε.
    start = sensitivity / 2 + epsilon * scale**2 / sensitivity
    return float(quad(excess, start, start + 20 * scale, epsabs=1e-14, limit=200)[0])


@pytest.mark.parametrize("epsilon", [0.05, 1.0, 8.0])
@pytest.mark.parametrize("delta", [1e-5, 1e-2])
@pytest.mark.parametrize("sensitivity", [1.0, SENSITIVITY])
def test_scale_is_the_smallest_that_is_private(epsilon: float, delta: float, sensitivity: float) -> None:
    scale = gaussian_scale(epsilon, delta, sensitivity)
    assert delta_of(scale, epsilon, sensitivity) == pytest.approx(delta, rel=1e-4)
    assert delta_of(0.99 * scale, epsilon, sensitivity) > delta


def test_scale_against_published_and_extreme_values() -> None:
    # The classical bound sqrt(2 log(1.25/δ)) Δ/ε holds for ε < 1 and is looser.
    assert gaussian_scale(0.5, 1e-5, 1.0) < math.sqrt(2 * math.log(1.25e5)) / 0.5
    assert gaussian_scale(1.0, 1e-5, 1.0) == pytest.approx(3.7306, abs=1e-4)
    assert gaussian_scale(1.0, 1e-5, 2.0) == pytest.approx(2 * gaussian_scale(1.0, 1e-5, 1.0), rel=1e-6)
    for epsilon, delta in ((1e-6, 1e-12), (1e6, 1e-12), (1e-6, 0.9)):
        assert 0 < gaussian_scale(epsilon, delta, 1.0) < math.inf


def test_one_image_changes_what_the_noise_is_added_to_by_the_sensitivity_at_most() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, 6))
    features /= np.linalg.norm(features, axis=1, keepdims=True)

    def released(rows: np.ndarray) -> np.ndarray:
        products = rows.T @ rows
        upper = products[np.triu_indices(6, 1)] * math.sqrt(2)
        return np.concatenate([[len(rows)], rows.sum(axis=0), np.diag(products), upper])

    changes = [np.linalg.norm(released(features) - released(np.delete(features, row, axis=0))) for row in range(40)]
    assert max(changes) == pytest.approx(SENSITIVITY)


def test_noise_has_the_stated_deviation_in_every_entry() -> None:
    features = np.random.default_rng(1).normal(size=(200_000, 5)) * 0.1
    exact = FeatureStatistics.of(features)
    scale = gaussian_scale(1.0, 1e-5, SENSITIVITY)
    rng = np.random.default_rng(2)
    noisy = [add_gaussian_noise(exact, 1.0, 1e-5, rng) for _ in range(400)]
    assert {part.n for part in noisy} == {200_000}
    assert noisy[0].noise == pytest.approx(scale / 200_000, rel=1e-3)
    means, products = (np.array([getattr(part, name) for part in noisy]) for name in ("mean", "products"))
    sizes = products.std(axis=0) * 200_000 / scale
    assert means.std(axis=0) * 200_000 / scale == pytest.approx(1, abs=0.15)
    assert np.diag(sizes) == pytest.approx(1, abs=0.15)
    assert sizes[np.triu_indices(5, 1)] == pytest.approx(1 / math.sqrt(2), abs=0.12)
    assert (products == products.transpose(0, 2, 1)).all()
    assert means.mean(axis=0) == pytest.approx(exact.mean, abs=1e-5)


@pytest.mark.parametrize("count", [60, 5000])
def test_the_server_accepts_honest_noise(count: int) -> None:
    features = np.random.default_rng(3).normal(size=(count, 32)) * 0.1
    for seed in range(20):
        noisy = add_gaussian_noise(FeatureStatistics.of(features), 1.0, 1e-5, np.random.default_rng(seed))
        assert checked(count, noisy.mean, noisy.products, 32, noisy.noise).noise == noisy.noise
