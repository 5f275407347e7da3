from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from fedsynth.errors import UserError
from fedsynth.mixture import compose, energy, responsibilities, screening
from fedsynth.mixture.compose import SLICE_NUMBERS
from fedsynth.mixture.screening import (
    answer_statistics,
    bound_weights,
    equal_answers,
    median_answer,
    screen,
)

SHAPE = (1, 8, 8)
ALPHAS = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0).tolist()
LEVELS = (999, 699, 400, 100)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pictures(count: int, seed: int) -> torch.Tensor:
    """Images in [-1, 1] of high contrast, each its own."""
    return (2 * random(count, *SHAPE, seed=seed)).tanh()


def noised(images: torch.Tensor, count: int, t: int, seed: int) -> torch.Tensor:
    """``count`` samples at level t of a set of images."""
    alpha_bar = ALPHAS[t]
    return alpha_bar**0.5 * images[torch.arange(count) % len(images)] + (1 - alpha_bar) ** 0.5 * random(
        count, *SHAPE, seed=seed
    )


def exact(images: torch.Tensor, x: torch.Tensor, t: int) -> torch.Tensor:
    """The ε of a silo that knows exactly these images, by the mean of the posterior over them."""
    alpha_bar = ALPHAS[t]
    apart = torch.cdist(x.flatten(1), alpha_bar**0.5 * images.flatten(1)).square()
    clean = torch.softmax(-apart / (2 * (1 - alpha_bar)), 1) @ images.flatten(1)
    return ((x.flatten(1) - alpha_bar**0.5 * clean) / (1 - alpha_bar) ** 0.5).reshape(x.shape)


def everyone(eps: torch.Tensor) -> torch.Tensor:
    return torch.ones(len(eps), dtype=torch.bool)


def noisy(eps: torch.Tensor, size: float, seed: int) -> torch.Tensor:
    return eps + size * eps.square().mean().sqrt() * random(*eps.shape, seed=seed)


ATTACKS: dict[str, Any] = {
    "zero": lambda x, eps, seed: 0 * x,
    "lazy": lambda x, eps, seed: 0.05 * x,
    "ten times": lambda x, eps, seed: 10 * eps,
    "negated": lambda x, eps, seed: -eps,
    "echo": lambda x, eps, seed: x,
    "other noise": lambda x, eps, seed: random(*x.shape, seed=seed + 77),
}


@pytest.mark.parametrize(
    ("attack", "caught_at"),
    [
        ("zero", {999, 699, 400}),
        ("lazy", {999, 699, 400, 100}),
        ("ten times", {999, 699, 400, 100}),
        ("negated", {999, 699, 400}),
        ("echo", {100}),
        ("other noise", {999, 699}),
    ],
)
def test_attacks_are_caught_at_the_levels_where_they_show(attack: str, caught_at: set[int]) -> None:
    for seed in range(10):
        images = pictures(20, seed)
        for t in LEVELS:
            x = noised(images, 8, t, seed + 1000)
            eps = torch.stack([exact(images[k::5], x, t) for k in range(4)])
            eps = torch.cat([eps, ATTACKS[attack](x, eps[0], seed)[None]])
            found = screen(eps, x, ALPHAS[t], everyone(eps)).faults
            assert set(found) <= {4}
            if t in caught_at:
                assert 4 in found, (attack, t, seed)


def test_honest_silos_are_never_left_out() -> None:
    """Noisy silos, silos of one or two images, and silos of another kind of image, in 50 trials of four levels."""
    for seed in range(50):
        images = pictures(30, seed)
        for t in LEVELS:
            x = noised(images, 8, t, seed + 1000)
            whole = exact(images, x, t)
            eps = torch.stack(
                [
                    whole,
                    noisy(whole, 0.3, seed + 1),
                    noisy(whole, 0.5, seed + 2),
                    exact(images[:1], x, t),
                    exact(images[3:5], x, t),
                    exact(-images[5:9], x, t),
                    exact(torch.ones(1, *SHAPE), x, t),
                ]
            )
            assert screen(eps, x, ALPHAS[t], everyone(eps)).faults == {}, (seed, t)


@pytest.mark.parametrize("where", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("bound", [1.0, 0.3, 4.0])
def test_an_exact_model_of_images_passes_wherever_the_samples_stand(
    bound: float, where: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even the strictest bounds."""
    monkeypatch.setattr(screening, "MIN_GAIN", 1.0)
    monkeypatch.setattr(screening, "MAX_EXCESS", 1e-3)
    for seed in range(20):
        x = where * random(4, *SHAPE, seed=seed)
        for t in range(0, 1000, 111):
            eps = exact(bound * pictures(3, seed + 50), x, t)[None]
            fault = answer_statistics(eps, x, ALPHAS[t], everyone(eps), bound)[0].fault
            assert fault is None or "cosine" in fault


def test_what_lies_outside_is_measured_from_the_bound_of_the_codec() -> None:
    """Images of ±4 where they may be, and where only ±1 may be."""
    images, t = 4 * pictures(3, 1).sign(), 100
    x = noised(images, 8, t, 2)
    eps = exact(images, x, t)[None]
    assert screen(eps, x, ALPHAS[t], everyone(eps), 4.0).faults == {}
    found = answer_statistics(eps, x, ALPHAS[t], everyone(eps), 1.0)[0]
    snr = ALPHAS[t] / (1 - ALPHAS[t])
    # Every pixel of the implied image lies 3 outside, and the samples themselves 3 on average.
    assert found.excess == pytest.approx(3 * snr**0.5, rel=0.01)
    gain = (x.double().square().mean() - 4 * ALPHAS[t] ** 0.5 * x.double().abs().mean()) / (1 - ALPHAS[t])
    of_four = answer_statistics(eps, x, ALPHAS[t], everyone(eps), 4.0)[0]
    assert of_four.least_gain == pytest.approx(float(gain), rel=1e-9)
    assert of_four.excess < 1e-3


def test_one_lazy_silo_of_ten_takes_the_energy_weights_and_loses_them() -> None:
    images, t = pictures(40, 3), 500
    x = noised(images, 16, t, 4)
    eps = torch.stack([*(exact(images[k::9], x, t) for k in range(9)), 0.05 * x])
    log_prior = torch.full((10, 16), math.log(0.1))
    undefended = responsibilities(log_prior, energy(eps), 1.0)
    assert float(undefended[9].min()) > 0.9
    found = screen(eps, x, ALPHAS[t], everyone(eps))
    assert list(found.faults) == [9]
    assert "gain 0.05" in found.faults[9]
    log_prior[9] = -torch.inf
    defended = bound_weights(responsibilities(log_prior, energy(eps), 1.0), 0.5, found.equal)
    assert float(defended[9].max()) == 0
    assert float(defended.max()) <= 0.5 + 1e-6


def test_statistics_equal_their_formulas() -> None:
    """Over several slices, whatever a silent silo left behind."""
    n, alpha_bar = 2 * SLICE_NUMBERS // (4 * 64) + 5, 0.3
    eps, x = random(4, n, *SHAPE), random(n, *SHAPE, seed=1)
    eps[2] = torch.nan
    answered = torch.tensor([True, True, False, True])
    found = answer_statistics(eps, x, alpha_bar, answered)
    assert list(found) == [0, 1, 3]
    image, sample = eps[1].double().numpy(), x.double().numpy()
    implied = (sample - math.sqrt(0.7) * image) / math.sqrt(0.3)
    nearest = (sample - math.sqrt(0.3) * implied.clip(-1, 1)) / math.sqrt(0.7)
    size = np.linalg.norm
    assert found[1].energy == pytest.approx((image**2).mean())
    assert found[1].gain == pytest.approx((image * sample).mean() / math.sqrt(0.7))
    assert found[1].excess == pytest.approx(math.sqrt(((image - nearest) ** 2).mean()))
    assert found[1].echo == pytest.approx((image * sample).sum() / size(image) / size(sample))
    assert found[1].noise_share == pytest.approx(math.sqrt(0.7 / (sample**2).mean()))
    least = (sample**2 - math.sqrt(0.3) * np.abs(sample)).mean() / 0.7
    assert found[1].least_gain == pytest.approx(least)


def test_median_is_that_of_numpy_over_those_that_answered() -> None:
    eps = random(6, 2 * SLICE_NUMBERS // (6 * 64) + 5, *SHAPE)
    odd = torch.tensor([True, True, True, True, False, True])
    for answered in (everyone(eps), odd):
        np.testing.assert_allclose(median_answer(eps, answered), np.median(eps[answered].numpy(), 0), rtol=1e-6)


def test_a_fault_says_what_and_how_much() -> None:
    images = pictures(10, 0)
    x = noised(images, 8, 699, 1)
    honest = exact(images, x, 699)
    eps = torch.stack([honest, 0 * x, 10 * honest])
    found = screen(eps, x, ALPHAS[699], everyone(eps)).faults
    assert "gain 0 < 0." in found[1]
    assert " > 1.2" in found[2]
    low = noised(images, 8, 100, 1)
    assert "cosine 1.0000" in screen(low[None], low, ALPHAS[100], torch.tensor([True])).faults[0]


class TestEqualAnswers:
    def test_copies_are_found_and_neighbours_are_not(self) -> None:
        images, t = pictures(40, 0), 999
        x = noised(images, 2000, t, 1)
        eps = torch.stack([exact(images[k::6], x, t) for k in range(6)])
        eps[3] = eps[1] * (1 + 1e-6)
        eps[5] = eps[1]
        found = screen(eps, x, ALPHAS[t], everyone(eps))
        assert found.equal == ((1, 3, 5),)
        assert found.faults == {}

    def test_the_difference_counts_not_the_size(self) -> None:
        eps = random(1, 8, *SHAPE).expand(3, -1, -1, -1, -1).clone()
        eps[1] = -eps[1]
        eps[2, 5] *= 1 + 1e-3
        assert equal_answers(eps, answer_statistics(eps, eps[0], 0.5, everyone(eps))) == ()

    def test_half_precision_of_one_model_is_one_answer(self) -> None:
        eps = random(1, 8, *SHAPE).half().float().expand(2, -1, -1, -1, -1)
        assert equal_answers(eps, answer_statistics(eps, eps[0], 0.5, everyone(eps))) == ((0, 1),)

    def test_only_sound_answers_are_grouped(self) -> None:
        x = noised(pictures(5, 0), 8, 999, 1)
        eps = torch.stack([0 * x, 0 * x, exact(pictures(5, 0), x, 999)])
        found = screen(eps, x, ALPHAS[999], everyone(eps))
        assert (sorted(found.faults), found.equal) == ([0, 1], ())


def capped_by_loops(weights: np.ndarray, cap: float) -> np.ndarray:
    """Give the excess away until nobody has too much."""
    weights = weights / weights.sum()
    cap = max(cap, 1 / (weights > 0).sum())
    for _ in weights:
        over = weights >= cap
        rest = weights[~over].sum()
        weights = np.where(over, cap, weights * ((1 - cap * over.sum()) / rest if rest else 1.0))
    return weights


class TestBoundWeights:
    @pytest.mark.parametrize("cap", [0.15, 0.2, 0.35, 0.5, 0.9, 1.0])
    def test_equals_giving_the_excess_away(self, cap: float) -> None:
        weights = torch.softmax(3 * random(7, 40).double(), 0)
        weights[2, :20] = 0
        weights[:5, 5] = 0
        found = bound_weights(weights, cap)
        expected = np.stack([capped_by_loops(column, cap) for column in weights.numpy().T], 1)
        np.testing.assert_allclose(found, expected, rtol=1e-9)
        np.testing.assert_allclose(found.sum(0), 1, rtol=1e-12)

    def test_exact_numbers(self) -> None:
        weights = [[0.90, 0.6, 1.0, 0.9], [0.06, 0.3, 0.0, 0.1], [0.04, 0.1, 0.0, 0.0]]
        expected = [[0.5, 0.5, 1.0, 0.5], [0.3, 0.375, 0.0, 0.5], [0.2, 0.125, 0.0, 0.0]]
        np.testing.assert_allclose(bound_weights(torch.tensor(weights, dtype=torch.float64), 0.5), expected, rtol=1e-12)

    def test_inflated_counts_buy_no_more_than_the_cap(self) -> None:
        counts = torch.tensor([30.0, 40.0, 20.0, 1e9]).double()[:, None]
        np.testing.assert_allclose(bound_weights(counts, 0.4)[:, 0], [0.2, 0.8 / 3, 0.4 / 3, 0.4], rtol=1e-7)

    def test_equal_answers_share_the_weight_of_one(self) -> None:
        uniform = torch.full((4, 3), 0.25).double()
        found = bound_weights(uniform, equal=((1, 3),))
        np.testing.assert_allclose(found[:, 0], [1 / 3, 1 / 6, 1 / 3, 1 / 6], rtol=1e-12)

    def test_copies_are_capped_together(self) -> None:
        weights = torch.tensor([0.1, 0.6, 0.1, 0.2]).double()[:, None]
        found = bound_weights(weights, 0.5, ((1, 3),))
        np.testing.assert_allclose(found[:, 0], [0.25, 0.25, 0.25, 0.25], rtol=1e-12)

    def test_many_copies_move_the_mixture_no_more_than_one(self) -> None:
        eps = random(9, 6, *SHAPE)
        eps[3:] = eps[2]
        groups = equal_answers(eps, answer_statistics(eps, eps[0], 0.5, everyone(eps)))
        mixed = compose(eps, bound_weights(torch.full((9, 6), 1 / 9), equal=groups))
        np.testing.assert_allclose(mixed, eps[:3].mean(0), atol=1e-6)

    @pytest.mark.parametrize("cap", [0.0, -0.5, 1.5])
    def test_cap_out_of_range_is_refused(self, cap: float) -> None:
        with pytest.raises(UserError, match="max-silo-weight"):
            bound_weights(torch.ones(2, 1), cap)


def test_the_order_of_the_silos_does_not_matter() -> None:
    images, t = pictures(30, 0), 400
    x = noised(images, 40, t, 1)
    eps = torch.stack([*(exact(images[k::5], x, t) for k in range(5)), 0.05 * x, 10 * x, x])
    eps[3] = eps[0]
    answered = torch.tensor([True, False, True, True, True, True, True, True])
    weights = torch.softmax(random(8, 40), 0) * answered[:, None]
    for seed in range(5):
        order = torch.randperm(8, generator=torch.Generator().manual_seed(seed))
        place = order.argsort().tolist()
        one = screen(eps, x, ALPHAS[t], answered)
        other = screen(eps[order], x, ALPHAS[t], answered[order])
        assert {place[k]: why for k, why in one.faults.items()} == other.faults
        assert {frozenset(place[k] for k in group) for group in one.equal} == set(map(frozenset, other.equal))
        bounded = bound_weights(weights, 0.3, one.equal)
        assert torch.equal(bounded[order], bound_weights(weights[order], 0.3, other.equal))


def test_nothing_of_the_size_of_the_answers_is_allocated(
    largest_allocation: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screening, "MAX_EXCESS", 100.0)
    x = random(4096, *SHAPE)
    eps = x + 0.1 * random(10, 4096, *SHAPE, seed=1)
    eps[4] = eps[7]
    with largest_allocation(eps, x) as ours:
        found = screen(eps, x, 0.3, everyone(eps))
    assert found.equal == ((4, 7),)
    assert 0 < ours.bytes <= 8 * SLICE_NUMBERS


def test_samples_that_a_solver_left_a_hundredth_outside_the_images_are_no_fault() -> None:
    alpha_bar = 1 - 1e-4
    x = torch.full((8, 1, 8, 8), 1.02)
    nothing_to_remove = torch.zeros(1, 8, 1, 8, 8)
    (found,) = answer_statistics(nothing_to_remove, x, alpha_bar, torch.tensor([True])).values()
    assert found.fault is None
    assert found.excess == pytest.approx(0.02 / 0.1, rel=0.02)


class TestSamplesOutsideTheImages:
    """What earlier answers did to the samples is not held against the next."""

    ALPHA_BAR = 1 - 1e-4

    def fault(self, x: torch.Tensor, eps: torch.Tensor) -> str | None:
        (found,) = answer_statistics(eps[None], x, self.ALPHA_BAR, torch.tensor([True])).values()
        return found.fault

    def test_an_answer_of_the_size_of_noise_is_no_fault_wherever_they_are(self) -> None:
        for size in (1.0, 1.3, 3.0, 30.0):
            x = size * pictures(8, 0).sign()
            for seed in range(5):
                assert self.fault(x, random(*x.shape, seed=seed)) is None, size

    def test_what_an_answer_adds_is(self) -> None:
        x = 1.3 * pictures(8, 0).sign()
        # By 0.12 at most: MAX_EXCESS in the unit of LEAST_NOISE.
        assert self.fault(x, -10 * x.sign()) is None
        assert str(self.fault(x, -14 * x.sign())).startswith("implies no image: excess 4.4")

    def test_at_their_noise_level_nothing_is_unavoidable(self) -> None:
        for t in LEVELS:
            for seed in range(20):
                x = noised(pictures(20, seed), 32, t, seed)
                (found,) = answer_statistics(x[None], x, ALPHAS[t], torch.tensor([True])).values()
                assert found.unavoidable <= 0.05


class TestMostHoldersAlike:
    """Bounds give way by a factor of two where more than half of the holders miss them by less."""

    X = random(8, *SHAPE, seed=3)

    def left_out(self, *gains: float) -> list[int]:
        """Who is, of silos that answer c·x at pure noise, which has a gain of c."""
        eps = torch.stack([gain * self.X for gain in gains])
        return sorted(screen(eps, self.X, ALPHAS[999], everyone(eps)).faults)

    @pytest.mark.parametrize(
        ("gains", "left_out"),
        [
            # Undertrained, all or most: they count.
            ((0.07, 0.08), []),
            ((0.07, 0.08, 0.09), []),
            ((0.07, 0.08, 0.9), []),
            # As many as not, and fewer: they do not.
            ((0.07, 0.9), [0]),
            ((0.07, 0.08, 0.9, 1.0), [0, 1]),
            # Nobody can vouch for an only holder.
            ((0.07,), [0]),
            # Hostile ones among undertrained ones stay out, and do not count as alike.
            ((0.07, 0.08, 0.09, 0.0, 10.0), [3, 4]),
            ((0.07, 0.08, 0.09, -1.0), [3]),
            ((0.07, 0.0, 10.0), [0, 1, 2]),
            ((0.07, 0.0), [0, 1]),
            # Even where they are the majority, or all.
            ((0.0, 0.01, 0.02), [0, 1, 2]),
            ((10.0, 11.0, 0.9), [0, 1]),
        ],
    )
    def test_who_is_left_out(self, gains: tuple[float, ...], left_out: list[int]) -> None:
        assert self.left_out(*gains) == left_out

    def test_hostile_silos_up_to_half_change_nothing_about_sound_ones(self) -> None:
        """Whatever they answer, honest trained models stay, and the bounds stay as they are."""
        for seed in range(30):
            images = pictures(20, seed)
            for t in LEVELS:
                x = noised(images, 8, t, seed)
                honest = [exact(images[k::3], x, t) for k in range(3)]
                source = torch.Generator().manual_seed(seed)
                factor = float(torch.rand((), generator=source)) * 0.1
                eps = torch.stack([*honest, *(factor * x for _ in range(3))])
                found = screen(eps, x, ALPHAS[t], everyone(eps))
                assert found.alike == {}
                assert not set(found.faults) & {0, 1, 2}

    def test_what_gave_way_is_said(self) -> None:
        eps = torch.stack([gain * self.X for gain in (0.07, 0.08, 0.9)])
        found = screen(eps, self.X, ALPHAS[999], everyone(eps))
        assert sorted(found.alike) == [0, 1]
        assert "gain 0.0" in found.alike[0]
