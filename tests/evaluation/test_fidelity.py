from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm

from fedsynth.errors import UserError
from fedsynth.evaluation import extract_features, frechet_distance
from fedsynth.evaluation.fidelity import frechet_distance_of_moments


def oracle(real: np.ndarray, synthetic: np.ndarray) -> float:
    first, second = np.cov(real.T), np.cov(synthetic.T)
    shift = real.mean(axis=0) - synthetic.mean(axis=0)
    return float(shift @ shift + np.trace(first + second - 2 * sqrtm(first @ second).real))


def whitened(rng: np.random.Generator, count: int, dimension: int) -> np.ndarray:
    """Samples whose sample mean is exactly 0 and whose sample covariance is exactly the identity."""
    samples = rng.normal(size=(count, dimension))
    samples -= samples.mean(axis=0)
    return np.linalg.qr(samples)[0] * np.sqrt(count - 1)


def test_agrees_with_scipy_on_well_conditioned_features():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(400, 16)) @ rng.normal(size=(16, 16))
    synthetic = rng.normal(size=(300, 16)) @ rng.normal(size=(16, 16)) + 0.5
    assert frechet_distance(real, synthetic) == pytest.approx(oracle(real, synthetic), rel=1e-9)


def test_agrees_with_the_closed_form_for_diagonal_gaussians():
    rng = np.random.default_rng(1)
    deviations, shift = rng.uniform(0.5, 2.0, (2, 6)), rng.normal(size=6)
    real = whitened(rng, 50, 6) * deviations[0]
    synthetic = whitened(rng, 50, 6) * deviations[1] + shift
    expected = (shift**2).sum() + ((deviations[0] - deviations[1]) ** 2).sum()
    assert frechet_distance(real, synthetic) == pytest.approx(expected, rel=1e-10)


def test_singular_covariances_keep_the_closed_form():
    rng = np.random.default_rng(2)
    rotation = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    first = np.array([2.0, 1.0, 0.5, 0, 0, 0, 0, 0])
    second = np.array([1.0, 0, 0.5, 3.0, 0, 0, 0, 0])
    real, synthetic = (whitened(rng, 40, 8) * scale @ rotation for scale in (first, second))
    assert frechet_distance(real, synthetic) == pytest.approx(((first - second) ** 2).sum(), rel=1e-6)


def test_fewer_samples_than_dimensions_agree_with_the_factored_trace():
    rng = np.random.default_rng(3)
    real, synthetic = rng.normal(size=(5, 16)), rng.normal(size=(6, 16)) + 1
    centred = [x - x.mean(axis=0) for x in (real, synthetic)]
    root = np.linalg.norm(centred[0] @ centred[1].T, "nuc") / np.sqrt(4 * 5)
    shift = real.mean(axis=0) - synthetic.mean(axis=0)
    expected = shift @ shift + np.var(real, axis=0, ddof=1).sum() + np.var(synthetic, axis=0, ddof=1).sum() - 2 * root
    assert frechet_distance(real, synthetic) == pytest.approx(expected, rel=1e-6)


def test_identical_sets_and_constant_sets_are_at_distance_zero():
    rng = np.random.default_rng(4)
    full, flat = rng.normal(size=(100, 16)), rng.normal(size=(100, 3)) @ rng.normal(size=(3, 16))
    assert frechet_distance(full, full) == pytest.approx(0.0, abs=1e-10)
    assert frechet_distance(flat, flat) == pytest.approx(0.0, abs=1e-10)
    assert frechet_distance(np.ones((3, 4)), np.ones((9, 4))) == 0.0


def test_distance_of_moments_takes_swapped_sides():
    rng = np.random.default_rng(5)
    factors = rng.normal(size=(2, 4, 4))
    moments = [(rng.normal(size=4), factor @ factor.T) for factor in factors]
    forward = frechet_distance_of_moments(*moments[0], *moments[1])
    assert frechet_distance_of_moments(*moments[1], *moments[0]) == pytest.approx(forward, rel=1e-12)
    assert forward > 0


def test_grows_with_noise_on_real_digits(digits, classifier):
    rng = np.random.default_rng(6)
    real = extract_features(classifier, digits.test_images)
    distances = []
    for deviation in (0, 60, 120):
        noisy = digits.train_images[:360] + rng.normal(0, deviation, digits.test_images.shape)
        distances.append(frechet_distance(real, extract_features(classifier, noisy.clip(0, 255).astype(np.uint8))))
    assert distances[1] > 2 * distances[0]
    assert distances[2] > 2 * distances[1]


@pytest.mark.parametrize(
    ("synthetic", "message"),
    [
        (np.full((5, 3), np.nan), "5 of 5 samples are NaN"),
        (np.array([[0.0, 0.0, 0.0], [np.inf, 0.0, 0.0]]), "1 of 2 samples"),
        (np.zeros((1, 3)), "at least 2"),
        (np.zeros((5, 2)), "3-dimensional.*2-dimensional"),
        (np.zeros(5), r"\(N, D\)"),
    ],
)
def test_unusable_features_are_refused(synthetic, message):
    with pytest.raises(UserError, match=message):
        frechet_distance(np.eye(3), synthetic)
