from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from one_silo import simulated
from scipy.stats import dlaplace

from clients.noisy_counts import MIN_SCALES, add_geometric_noise, noisy_label_counts
from fedsynth.messages import PrepareRequest
from fedsynth.seeding import derive_seed


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_noise_is_discrete_laplace(scale: float) -> None:
    draws = 40_000
    noised = add_geometric_noise(np.full(draws, 1000), scale, np.random.default_rng(0)) - 1000
    for value in range(-3, 4):
        share = dlaplace.pmf(value, 1 / scale)
        assert np.mean(noised == value) == pytest.approx(share, abs=5 * np.sqrt(share / draws))


def test_counts_lost_in_the_noise_become_zero() -> None:
    noised = noisy_label_counts(np.tile([0, 5], 2000), 2.0, np.random.default_rng(0))
    assert ((noised == 0) | (noised >= MIN_SCALES * 2)).all()
    # P(noise >= 6) of a class the silo does not hold.
    assert np.mean(noised[::2] > 0) == pytest.approx(dlaplace.sf(5, 0.5), abs=0.01)


def test_scale_zero_adds_no_noise() -> None:
    counts = np.array([4, 0, 2])
    assert add_geometric_noise(counts, 0.0, np.random.default_rng()) is counts
    assert noisy_label_counts(counts, 0.0, np.random.default_rng()).tolist() == [4, 0, 2]


def test_a_simulated_silo_repeats_itself_with_the_seed(tmp_path: Path) -> None:
    nodes = [simulated(tmp_path, label_count_noise=3.0), simulated(tmp_path)]
    told, held = (node.ask(PrepareRequest(spec=node.spec)) for node in nodes)
    assert told.label_counts != held.label_counts
    assert told.num_examples == sum(told.label_counts)
    rng = np.random.default_rng(derive_seed(0, "label-count-noise", "silo-1"))
    assert told.label_counts == tuple(noisy_label_counts(np.array(held.label_counts), 3.0, rng))
