from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from one_silo import simulated
from scipy.stats import dlaplace

from clients.noisy_counts import MIN_SCALES, _with_noise, noisy_label_counts
from fedsynth.data import LabelledImages, Silo
from fedsynth.messages import PrepareRequest


def silo_of(*counts: int) -> Silo:
    labels = np.repeat(np.arange(len(counts)), counts)
    images = np.zeros((len(labels), 2, 2, 1), np.uint8)
    data = LabelledImages(images, labels, tuple("abcdef"[: len(counts)]))
    return Silo("clinic", data, data.subset(np.arange(0)))


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_noise_is_discrete_laplace(scale: float) -> None:
    draws = 40_000
    noised = _with_noise(np.full(draws, 1000), scale, np.random.default_rng(0)) - 1000
    for value in range(-3, 4):
        share = dlaplace.pmf(value, 1 / scale)
        assert np.mean(noised == value) == pytest.approx(share, abs=5 * np.sqrt(share / draws))


def test_counts_lost_in_the_noise_become_zero() -> None:
    noised = _with_noise(np.tile([0, 5], 2000), 2.0, np.random.default_rng(0))
    assert ((noised == 0) | (noised >= MIN_SCALES * 2)).all()
    # P(noise >= 6) of a class the silo does not hold.
    assert np.mean(noised[::2] > 0) == pytest.approx(dlaplace.sf(5, 0.5), abs=0.01)


def test_scale_zero_adds_no_noise(tmp_path: Path) -> None:
    counts = np.array([4, 0, 2])
    assert noisy_label_counts(counts, 0.0, silo_of(4, 0, 2), tmp_path, None) is counts
    assert not list(tmp_path.iterdir())


def test_a_real_silo_draws_once_and_cannot_be_foreseen(tmp_path: Path) -> None:
    counts, silo = np.full(6, 10**6), silo_of(*[2] * 6)
    first = noisy_label_counts(counts, 50.0, silo, tmp_path / "a", None)
    assert (noisy_label_counts(counts, 50.0, silo, tmp_path / "a", None) == first).all()
    assert (noisy_label_counts(counts, 50.0, silo, tmp_path / "b", None) != first).any()
    assert (noisy_label_counts(counts, 60.0, silo, tmp_path / "a", None) != first).any()
    assert (noisy_label_counts(counts + 1, 50.0, silo, tmp_path / "a", None) - 1 != first).any()


def test_a_simulated_silo_repeats_itself_with_the_seed(tmp_path: Path) -> None:
    counts, silo = np.full(6, 10**6), silo_of(*[2] * 6)
    first, again, other = (noisy_label_counts(counts, 50.0, silo, tmp_path, seed) for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()


def test_the_server_is_told_noisy_counts_alone(tmp_path: Path) -> None:
    nodes = simulated(tmp_path, label_count_noise=3.0), simulated(tmp_path)
    told, held = (node.ask(PrepareRequest(spec=node.spec)) for node in nodes)
    assert told.label_counts != held.label_counts
    assert told.num_examples == sum(told.label_counts)
