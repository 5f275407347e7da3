from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from diffusers import DDPMScheduler

from fedsynth.mixture.picard import ancestral_std, converged, guesses, picard_step

Move = Callable[[torch.Tensor], torch.Tensor]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moves(count: int) -> list[Move]:
    """Smooth moves, each with its own noise."""
    return [
        lambda x, j=j: x + 0.3 * torch.sin(x + j) + 0.1 * random(2, 1, 3, 3, seed=j)  # type: ignore[misc]
        for j in range(count)
    ]


def iterate(moved: list[torch.Tensor], known: list[torch.Tensor]) -> list[torch.Tensor]:
    states = [known[0]]
    for after, guess in zip(moved, known, strict=True):
        states.append(picard_step(after, states[-1], guess))
    return states


def test_the_steps_add_up_to_the_sum_over_the_window() -> None:
    known = [random(2, 1, 3, 3, seed=10 + j) for j in range(5)]
    moved = [move(guess) for move, guess in zip(moves(5), known, strict=True)]
    states = iterate(moved, known)
    for j in range(5):
        total = known[0] + sum((moved[i] - known[i] for i in range(j + 1)), torch.zeros_like(known[0]))
        torch.testing.assert_close(states[j + 1], total, rtol=0, atol=1e-14)


def test_every_iteration_makes_one_more_state_exact() -> None:
    sequential = [random(2, 1, 3, 3, seed=99)]
    for move in moves(6):
        sequential.append(move(sequential[-1]))
    states = guesses(sequential[0], [], 7)
    for done in range(1, 7):
        states = iterate([move(guess) for move, guess in zip(moves(6), states[:6], strict=True)], states[:6])
        exact = [bool(torch.equal(state, known)) for state, known in zip(states, sequential, strict=True)]
        assert exact == [True] * (done + 1) + [False] * (6 - done)


def test_new_levels_start_from_the_last_state_that_is_known() -> None:
    state, ahead = random(1, 1, 2, 2), [random(1, 1, 2, 2, seed=j) for j in (1, 2)]
    assert [guess is known for guess, known in zip(guesses(state, ahead, 5), [state, *ahead], strict=False)] == [
        True
    ] * 3
    assert all(guess is ahead[1] for guess in guesses(state, ahead, 5)[3:])
    assert all(guess is state for guess in guesses(state, [], 3))
    assert len(guesses(state, ahead, 2)) == 2


def test_the_sample_that_changed_most_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    guess = torch.zeros(3, 1, 2, 2)
    state = guess.clone()
    state[1] = torch.tensor([0.3, -0.3, 0.3, -0.3]).reshape(1, 2, 2)
    # A tenth of the noise.
    assert converged(state, guess, 3.01)
    assert not converged(state, guess, 2.99)
    assert not converged(torch.full_like(guess, torch.nan), guess, 3.01)
    monkeypatch.setattr("fedsynth.mixture.picard.TOLERANCE", 0.0)
    assert converged(guess, guess, 3.01)
    assert not converged(state, guess, 3.01)


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
def test_noise_is_that_of_ancestral_moves(schedule: str) -> None:
    scheduler = DDPMScheduler(timestep_spacing="trailing", beta_schedule=schedule)
    scheduler.set_timesteps(20)
    steps, alphas = scheduler.timesteps.tolist(), scheduler.alphas_cumprod
    for t, s in pairwise(steps):
        expected = float(scheduler._get_variance(t)) ** 0.5
        assert ancestral_std(float(alphas[t]), float(alphas[s])) == pytest.approx(expected, rel=1e-5)
    assert ancestral_std(0.5, 1.0) == 0
