from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from exact_networks import KINDS
from ring_of_modes import RingOfModes, respaced
from scipy.special import logsumexp
from scipy.stats import norm

from fedsynth.config import Recipe
from fedsynth.diffusion.noise_levels import to_noise
from fedsynth.mixture import PathPosterior, effective_experts, energy, responsibilities, temper
from fedsynth.mixture.weights import LEAST_NOISE

K, N = 7, 11


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def weights_by_loops(prior: np.ndarray, energies: np.ndarray, lam: float) -> np.ndarray:
    out = np.zeros_like(energies)
    for n in range(energies.shape[1]):
        terms = [float(prior[k, n]) * math.exp(-lam * float(energies[k, n])) for k in range(len(energies))]
        for k, term in enumerate(terms):
            out[k, n] = term / sum(terms)
    return out


class TestResponsibilities:
    @pytest.mark.parametrize("lam", [0.0, 2.0])
    @pytest.mark.parametrize("per_sample", [False, True])
    def test_equals_loops(self, lam: float, per_sample: bool) -> None:
        prior = torch.softmax(random(K, N), 0) if per_sample else torch.softmax(random(K), 0)
        energies = random(K, N, seed=1).square() * 5
        columns = prior.numpy() if per_sample else np.repeat(prior.numpy()[:, None], N, 1)
        found = responsibilities(prior.log(), energies, lam)
        np.testing.assert_allclose(found, weights_by_loops(columns, energies.numpy(), lam), rtol=1e-12)
        np.testing.assert_allclose(found.sum(0), 1, rtol=1e-14)

    def test_float32_stays_float32(self) -> None:
        prior, energies = torch.softmax(random(K), 0), random(K, N, seed=1).square() * 5
        found = responsibilities(prior.log().float(), energies.float(), 1.0)
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found, responsibilities(prior.log(), energies, 1.0), rtol=1e-5)

    def test_excluded_silo_counts_for_nothing_whatever_its_energy(self) -> None:
        prior = torch.softmax(random(K, N), 0)
        prior[2] = 0
        prior[4, 3:] = 0
        energies = random(K, N, seed=1).square()
        expected = weights_by_loops(prior.numpy(), energies.numpy(), 1.5)
        energies[2] = torch.nan
        energies[4, 3:] = torch.inf
        found = responsibilities(prior.log(), energies, 1.5)
        np.testing.assert_allclose(found, expected, rtol=1e-12)
        assert (found[2] == 0).all()
        assert (found[4, 3:] == 0).all()

    def test_small_lambda_tends_to_the_prior(self) -> None:
        prior, energies = torch.softmax(random(K), 0), random(K, N, seed=1).square() * 500
        distances = [
            float((responsibilities(prior.log(), energies, lam) - prior[:, None]).abs().max())
            for lam in (1e-2, 1e-5, 1e-8, 0.0)
        ]
        assert distances == sorted(distances, reverse=True)
        assert distances[2] < 1e-5
        assert distances[3] < 1e-15

    def test_huge_energies_stay_finite_and_keep_their_order(self) -> None:
        energies = torch.tensor([[1e6, 1e6], [1e6 + 1, 3e6], [2e6, 1e6]])
        found = responsibilities(torch.zeros(3), energies, 1.0)
        expected = [[1 / (1 + math.exp(-1)), 0.5], [1 / (1 + math.e), 0], [0, 0.5]]
        np.testing.assert_allclose(found, expected, atol=1e-6)

    def test_lowest_energy_takes_all_in_high_dimension(self) -> None:
        answers = random(3, 4, 1, 32, 32, dtype=torch.float32)
        answers[1] *= 0.9
        found = responsibilities(torch.zeros(3), energy(answers), 1.0)
        assert (found[1] > 0.999).all()
        assert (effective_experts(found) < 1.01).all()


def test_temperature_lies_between_posterior_and_prior() -> None:
    prior = torch.softmax(random(K, N), 0)
    prior[3] = 0
    evidence = 20 * random(K, N, seed=1)
    logits = prior.log() + evidence
    for temperature in (1.0, 3.0, 40.0):
        expected = prior * (evidence / temperature).exp()
        found = torch.softmax(temper(logits + 7.0, prior.log(), temperature), 0)
        np.testing.assert_allclose(found, expected / expected.sum(0), rtol=1e-10)
    assert temper(logits, prior.log(), 1.0) is logits
    np.testing.assert_allclose(torch.softmax(temper(logits, prior.log(), 1e12), 0), prior / prior.sum(0), rtol=1e-8)


def test_effective_experts_is_the_exponential_of_entropy() -> None:
    found = effective_experts(
        torch.tensor([[1.0, 0.5, 0.25, 0.9], [0, 0.5, 0.25, 0.1], [0, 0, 0.25, 0], [0, 0, 0.25, 0]])
    )
    np.testing.assert_allclose(found, [1, 2, 4, math.exp(-0.9 * math.log(0.9) - 0.1 * math.log(0.1))], rtol=1e-6)


def ancestral_move(alpha_t: float, alpha_s: float, x_t: np.ndarray, eps: np.ndarray) -> tuple[np.ndarray, float]:
    """Mean and std of p(x_s | x_t) as Ho et al. 2020, Eq. 7, write them for neighbouring levels."""
    step_alpha, step_beta = alpha_t / alpha_s, 1 - alpha_t / alpha_s
    clean = (x_t - np.sqrt(1 - alpha_t) * eps) / np.sqrt(alpha_t)
    mean = np.sqrt(alpha_s) * step_beta * clean + np.sqrt(step_alpha) * (1 - alpha_s) * x_t
    return mean / (1 - alpha_t), np.sqrt((1 - alpha_s) / (1 - alpha_t) * step_beta)


class Path:
    """A path of real ancestral moves, with the answers of silos that differ a little."""

    def __init__(self, num_silos: int = 3, num_samples: int = 5, rounds: int = 6, spread: float = 0.05) -> None:
        self.scheduler = respaced(rounds)
        generator = torch.Generator().manual_seed(3)
        x = torch.randn(num_samples, 1, 2, 2, generator=generator)
        self.moves: list[tuple[int, torch.Tensor, torch.Tensor, torch.Tensor]] = []
        for t in self.scheduler.timesteps.tolist():
            eps = x + spread * torch.randn(num_silos, *x.shape, generator=generator)
            moved = self.scheduler.step(eps.mean(0), t, x, generator=generator).prev_sample
            self.moves.append((t, x, moved, eps))
            x = moved

    def log_likelihoods(self) -> list[np.ndarray]:
        """log p_k(x_s | x_t) (K, N) of every move but the last, by scipy."""
        levels = [t for t, *_ in self.moves]
        alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
        out = []
        for (t, x, moved, eps), s in zip(self.moves[:-1], levels[1:], strict=True):
            mean, std = ancestral_move(alpha_bar[t], alpha_bar[s], x.double().numpy(), eps.double().numpy())
            out.append(norm.logpdf(moved.double().numpy(), mean, std).sum((2, 3, 4)))
        return out

    def run(self, posterior: PathPosterior, answered: dict[int, torch.Tensor] | None = None) -> list[torch.Tensor]:
        """Weights after every move."""
        weights = []
        for number, (t, x, moved, eps) in enumerate(self.moves):
            posterior.update(x, moved, eps, self.scheduler, t, (answered or {}).get(number))
            weights.append(posterior.weights)
        return weights


class TestPathPosterior:
    def test_equals_bayes_with_explicit_densities(self) -> None:
        path, prior = Path(), torch.softmax(random(3, 5), 0)
        found = path.run(PathPosterior(prior.log()))
        logits = prior.log().numpy()
        for step, likelihood in enumerate(path.log_likelihoods()):
            logits = logits + likelihood
            np.testing.assert_allclose(found[step], np.exp(logits - logsumexp(logits, 0)), rtol=2e-3, atol=1e-9)
        assert 0.01 < float(found[-1].min(0).values.max()) < 0.99

    def test_move_to_clean_data_says_nothing(self) -> None:
        found = Path().run(PathPosterior(torch.zeros(3)))
        assert torch.equal(found[-1], found[-2])
        assert not torch.equal(found[-2], found[-3])

    def test_prior_of_silos_alone(self) -> None:
        prior = torch.tensor([0.5, 0.3, 0.2]).log()
        posterior = PathPosterior(prior)
        np.testing.assert_allclose(posterior.weights[:, 0], [0.5, 0.3, 0.2], rtol=1e-6)
        everywhere = Path().run(PathPosterior(prior[:, None].expand(3, 5)))
        for one, other in zip(Path().run(posterior), everywhere, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12)

    def test_excluded_silo_stays_out_whatever_it_answers(self) -> None:
        prior = torch.softmax(random(3, 5), 0)
        prior[1, 2:] = 0
        expected = Path().run(PathPosterior(prior.log()))
        path = Path()
        for *_, eps in path.moves:
            eps[1, 2:] = torch.nan
        for found, clean in zip(path.run(PathPosterior(prior.log())), expected, strict=True):
            assert (found[1, 2:] == 0).all()
            assert torch.equal(found, clean)
            np.testing.assert_allclose(found.sum(0), 1, rtol=1e-12)

    def test_two_identical_silos_stay_at_one_half_when_one_misses_a_level(self) -> None:
        path = Path(num_silos=2)
        for *_, eps in path.moves:
            eps[1] = eps[0]
        missing = torch.ones(2, 5, dtype=torch.bool)
        missing[1] = False
        for found in path.run(PathPosterior(torch.zeros(2)), {1: missing, 3: ~missing}):
            np.testing.assert_allclose(found, 0.5, rtol=1e-12)

    def test_absent_silo_keeps_its_weight_and_the_others_share_the_rest(self) -> None:
        path, prior = Path(), torch.softmax(random(3, 5), 0)
        answered = torch.ones(3, 5, dtype=torch.bool)
        answered[0] = False
        answered[0, 4] = True
        path.moves[1][3][0, :4] = torch.nan
        found = path.run(PathPosterior(prior.log()), {1: answered})
        likelihood = path.log_likelihoods()[1]
        before = found[0].numpy()
        rest = before[1:, :4] * np.exp(likelihood[1:, :4] - likelihood[1:, :4].max(0))
        np.testing.assert_allclose(found[1][0, :4], before[0, :4], rtol=1e-12)
        np.testing.assert_allclose(found[1][1:, :4], (1 - before[0, :4]) * rest / rest.sum(0), rtol=2e-3)
        everyone = before[:, 4] * np.exp(likelihood[:, 4] - likelihood[:, 4].max())
        np.testing.assert_allclose(found[1][:, 4], everyone / everyone.sum(), rtol=2e-3)

    def test_nobody_answers_nothing_changes(self) -> None:
        silence = torch.zeros(3, 5, dtype=torch.bool)
        found = Path().run(PathPosterior(torch.zeros(3)), {2: silence})
        np.testing.assert_allclose(found[2], found[1], rtol=1e-12)

    def test_weights_of_hopeless_silos_stay_finite(self) -> None:
        found = Path(spread=50.0).run(PathPosterior(torch.zeros(3)))[-1]
        assert found.isfinite().all()
        np.testing.assert_allclose(found.sum(0), 1, rtol=1e-12)

    def test_nothing_of_the_size_of_the_answers_is_allocated(self, largest_allocation: type) -> None:
        x, moved = random(2, 2048, 3, 8, 8, dtype=torch.float32)
        eps = random(5, 2048, 3, 8, 8, dtype=torch.float32)
        with largest_allocation(x, eps) as ours:
            PathPosterior(torch.zeros(5)).update(x, moved, eps, respaced(10), 499)
        assert 0 < ours.bytes <= eps.nbytes / 4


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("rounds", [40, 100])
def test_a_wrong_image_costs_what_its_square_is_worth_at_the_last_level_that_counts(rounds: int, schedule: str) -> None:
    """Kingma et al. 2021 (arXiv 2107.00630), Eq. 15: moves from SNR r to SNR s differ by (s - r)/2 · ‖x̂_0 - x_0‖²."""
    recipe, shape, wrong = KINDS[f"x0-{schedule}"], (400, 1, 4, 4), 0.05
    scheduler, generator = respaced(rounds, recipe), torch.Generator().manual_seed(0)
    levels, posterior = scheduler.timesteps.tolist(), PathPosterior(torch.zeros(2))
    x = torch.randn(shape, generator=generator)
    ratios, last = [], 0
    for t in levels:
        alpha_bar = float(scheduler.alphas_cumprod[t])
        # Every image is 0; the second silo says 0.05.
        says = [torch.zeros_like(x), torch.full_like(x, wrong)]
        eps = torch.stack([to_noise(clean, x, alpha_bar, "sample") for clean in says])
        moved = scheduler.step(eps[0], t, x, generator=generator).prev_sample
        posterior.update(x, moved, eps, scheduler, t)
        ratios.append(float((posterior.weights[1].log() - posterior.weights[0].log()).mean()))
        last = len(ratios) if 1 - alpha_bar >= LEAST_NOISE**2 else last
        x = moved
    last = min(last, len(levels) - 1)
    snr = [float(a / (1 - a)) for a in scheduler.alphas_cumprod[levels].double()]
    expected = [-0.5 * (snr[done] - snr[0]) * 16 * wrong**2 for done in range(1, last + 1)]
    np.testing.assert_allclose(ratios[:last], expected, rtol=0.1, atol=0.05)
    assert ratios[last:] == [ratios[last - 1]] * (len(levels) - last), "cleaner samples say nothing"
    assert -8 < ratios[-1] < -0.5
    # Counted to the cleanest level it would be this much.
    assert -0.5 * float(scheduler.alphas_cumprod[0] / (1 - scheduler.alphas_cumprod[0])) * 16 * wrong**2 < -150


@pytest.mark.parametrize("error", [0.0, 0.03])
@pytest.mark.parametrize("recipe", KINDS.values(), ids=KINDS)
def test_posterior_weights_recover_mode_frequencies_whatever_networks_predict(recipe: Recipe, error: float) -> None:
    ring, count = RingOfModes(), 1500
    assert ring.distance("posterior", count, 25, recipe, error) < 0.04
    assert error or ring.distance("energy", count, 25, recipe) > 0.2


@pytest.mark.parametrize("rounds", [100, 25])
def test_posterior_weights_recover_mode_frequencies_where_energy_weights_do_not(rounds: int) -> None:
    ring, rng, count = RingOfModes(), np.random.default_rng(0), 1500
    # What 1,500 exact draws are off by in the mean.
    floor = np.mean([ring.from_truth(rng.multinomial(count, ring.truth) / count) for _ in range(200)])
    assert floor == pytest.approx(0.0266, abs=0.002)
    assert ring.distance("posterior", count, rounds) < 1.5 * floor
    assert ring.distance("energy", count, rounds) > 8 * floor
