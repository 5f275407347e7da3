from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fedsynth.mixture import PathPosterior, compose, energy, log_prior, responsibilities
from fedsynth.mixture.compose import SLICE_NUMBERS

K, N, SHAPE = 7, 11, (2, 3, 4)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def composed_by_loops(eps: np.ndarray, weights: np.ndarray) -> np.ndarray:
    out = np.zeros(eps.shape[1:])
    for k in range(eps.shape[0]):
        for n in range(eps.shape[1]):
            out[n] += weights[k, n] * eps[k, n]
    return out


SLICE = SLICE_NUMBERS // (K * math.prod(SHAPE))


@pytest.mark.parametrize("num_samples", [1, N, SLICE, SLICE + 1, 2 * SLICE + 5])
def test_equals_loops(num_samples: int) -> None:
    eps, weights = random(K, num_samples, *SHAPE), torch.softmax(random(K, num_samples, seed=1), 0)
    np.testing.assert_allclose(compose(eps, weights), composed_by_loops(eps.numpy(), weights.numpy()), atol=1e-13)


def test_keeps_the_type_of_the_answers() -> None:
    eps, weights = random(K, N, *SHAPE), torch.softmax(random(K, N, seed=1), 0)
    found = compose(eps.float(), weights)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, composed_by_loops(eps.numpy(), weights.numpy()), atol=1e-6)


def test_a_silo_of_weight_zero_may_leave_anything() -> None:
    eps, weights = random(K, 40, *SHAPE), torch.softmax(random(K, 40, seed=1), 0)
    weights[2], weights[5, 35:] = 0, 0
    weights /= weights.sum(0)
    expected = composed_by_loops(eps.numpy(), weights.numpy())
    eps[2], eps[5, 35:] = torch.nan, torch.inf
    np.testing.assert_allclose(compose(eps, weights), expected, atol=1e-13)


def test_nan_of_a_silo_that_counts_is_not_hidden() -> None:
    eps = random(2, 3, *SHAPE)
    eps[0, 1] = torch.nan
    assert compose(eps, torch.full((2, 3), 0.5)).isnan().flatten(1).all(1).tolist() == [False, True, False]


def test_one_column_of_weights_holds_for_all_samples() -> None:
    eps, prior = random(K, 2 * SLICE + 5, *SHAPE), torch.softmax(random(K, seed=1), 0)
    everywhere = prior[:, None].expand(K, eps.shape[1])
    np.testing.assert_allclose(compose(eps, PathPosterior(prior.log()).weights), compose(eps, everywhere), atol=1e-13)


def test_identical_silos_are_one_silo() -> None:
    counts = torch.tensor([[5, 1], [1, 9], [3, 3]])
    labels = torch.arange(40) % 2
    one = random(1, 40, *SHAPE)
    columns = log_prior("class", counts, labels)
    eps = one.expand(3, 40, *SHAPE)
    weights = responsibilities(columns, energy(eps), 2.0)
    np.testing.assert_allclose(weights, columns.exp(), rtol=1e-12)
    np.testing.assert_allclose(compose(eps, weights), one[0], rtol=1e-12)
    assert torch.equal(compose(one, torch.ones(1, 40)), one[0])


def test_nothing_of_the_size_of_the_answers_is_allocated(largest_allocation: type) -> None:
    eps = random(5, 1024, 3, 8, 8, dtype=torch.float32)
    weights = torch.softmax(random(5, 1024, seed=1), 0)
    with largest_allocation(eps) as naive:
        (eps * weights.float()[..., None, None, None]).sum(0)
    with largest_allocation(eps) as ours:
        compose(eps, weights)
    assert naive.bytes == eps.nbytes
    assert ours.bytes == eps[0].nbytes
