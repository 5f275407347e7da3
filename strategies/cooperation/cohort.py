"""Samples that move together: one class, one noise level, one sampler's memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fedsynth.diffusion import forget_used_outputs, restore_sampler, sampler_state
from fedsynth.mixture import PathPosterior, compose, energy, responsibilities, temper
from fedsynth.mixture.picard import ancestral_std, guesses
from fedsynth.seeding import make_generator

COHORT_NUMBERS = 2**16
"""Numbers in the samples of one cohort, at most: a scheduler's step holds half a dozen copies of what it moves."""


class Cohort:
    """Samples of one class and where they stand.

    A class waits as a whole when nobody who holds it answers, and its samples catch up later: that is why each cohort
    has its own place among the levels. Its noise depends on that place and on the cohort, not on the round.

    Args:
        number: position among the cohorts, for its noise.
        rows: positions of its samples in the set, int64 (n,).
        label: their class.
        scheduler: moves them; its timesteps are set and it serves no other cohort.
        log_prior: log prior weights of the silos (K, n).
        follows_path: whether weights follow the samples' paths (:class:`fedsynth.mixture.PathPosterior`).
        temperature: of the posterior, see :func:`fedsynth.mixture.temper`.
    """

    def __init__(
        self,
        number: int,
        rows: torch.Tensor,
        label: int,
        scheduler: Any,
        log_prior: torch.Tensor,
        follows_path: bool,
        temperature: float = 1.0,
    ) -> None:
        self.number = number
        self.rows = rows
        self.label = label
        self.scheduler = scheduler
        self.log_prior = log_prior
        self.temperature = temperature
        self.posterior = PathPosterior(log_prior) if follows_path else None
        self.level = 0
        self._timesteps: list[int] = scheduler.timesteps.tolist()
        self._ahead: torch.Tensor | None = None

    @property
    def num_levels(self) -> int:
        """Moves from pure noise to images."""
        return len(self._timesteps)

    @property
    def finished(self) -> bool:
        """Whether its samples are images."""
        return self.level == self.num_levels

    @property
    def timestep(self) -> int:
        """Where its samples stand."""
        return self._timesteps[self.level]

    @property
    def noise_std(self) -> float:
        """Std of the noise in an ancestral move to where its samples stand; after the first move."""
        alphas_bar = self.scheduler.alphas_cumprod
        return ancestral_std(float(alphas_bar[self._timesteps[self.level - 1]]), float(alphas_bar[self.timestep]))

    def levels_ahead(self, most: int) -> list[int]:
        """Timesteps of its next ``most`` levels, or of as many as are left."""
        return self._timesteps[self.level : self.level + most]

    def guesses(self, samples: torch.Tensor, most: int) -> list[torch.Tensor]:
        """Return its samples (n, C, H, W), and guesses of them at the levels that follow: :meth:`levels_ahead`."""
        ahead = [] if self._ahead is None else list(self._ahead)
        return guesses(samples, ahead, len(self.levels_ahead(most)))

    def settle(self, stand: dict[str, Any], ahead: list[torch.Tensor]) -> None:
        """Go back to where its samples ``stand``, a :meth:`state_dict` after a move, and keep the states ``ahead``."""
        if stand["level"] != self.level:
            self.load_state_dict(stand)
        self._ahead = torch.stack(ahead) if ahead else None

    def weigh(self, epsilon: torch.Tensor, answered: torch.Tensor, energy_scale: float | None) -> torch.Tensor:
        """Weights (K, n) of those that answered; zero for the others.

        Args:
            epsilon: answers (K, n, C, H, W); what silos did not answer does not count, whatever stands there.
            answered: bool (K,), at least one that the prior does not exclude.
            energy_scale: λ of energy weights; None: the prior, or the posterior.
        """
        logits = self.log_prior
        if self.posterior is not None:
            logits = temper(self.posterior.logits, self.log_prior, self.temperature)
        present = logits.masked_fill(~answered[:, None], -torch.inf)
        if energy_scale is not None:
            return responsibilities(present, energy(epsilon), energy_scale)
        return torch.softmax(present, dim=0)

    def move(
        self,
        samples: torch.Tensor,
        epsilon: torch.Tensor,
        answered: torch.Tensor,
        weights: torch.Tensor,
        seed: int,
    ) -> torch.Tensor:
        """Make one move of its samples (n, C, H, W) on the composed answers, and account for it in the posterior."""
        t = self.timestep
        generator = make_generator(seed, "cooperative-noise", self.level, self.number)
        composed = compose(epsilon, weights)
        moved: torch.Tensor = self.scheduler.step(composed, t, samples, generator=generator).prev_sample
        forget_used_outputs(self.scheduler)
        if self.posterior is not None:
            known = answered[:, None].expand(-1, len(self.rows))
            self.posterior.update(samples, moved, epsilon, self.scheduler, t, known)
        self.level += 1
        return moved

    def state_dict(self) -> dict[str, Any]:
        """Return level, logits, what the sampler remembers, and the guesses of a window."""
        state = {"level": self.level, "sampler": sampler_state(self.scheduler)}
        state |= {"ahead": self._ahead} if self._ahead is not None else {}
        return state | ({"logits": self.posterior.logits} if self.posterior is not None else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`, on a fresh cohort."""
        self.level, self._ahead = state["level"], state.get("ahead")
        restore_sampler(self.scheduler, state["sampler"])
        if self.posterior is not None:
            self.posterior.logits = state["logits"]


def make_cohorts(
    labels: torch.Tensor,
    shape: tuple[int, ...],
    new_scheduler: Callable[[], Any],
    log_prior: torch.Tensor,
    follows_path: bool,
    temperature: float = 1.0,
) -> list[Cohort]:
    """Cut the set into cohorts of one class each, in the order of the classes, that the same silos answer for.

    Args:
        labels: class of every sample (N,).
        shape: (C, H, W) of one.
        new_scheduler: makes a scheduler for a cohort.
        log_prior: (K, N).
        follows_path, temperature: see :class:`Cohort`.
    """
    most = max(1, COHORT_NUMBERS // max(1, torch.Size(shape).numel()))
    parts = [
        (label, part)
        for label in torch.unique(labels).tolist()
        for rows in _by_silos(torch.nonzero(labels == label).squeeze(1), log_prior)
        for part in rows.split(most)
    ]
    return [
        Cohort(number, rows, label, new_scheduler(), log_prior[:, rows], follows_path, temperature)
        for number, (label, rows) in enumerate(parts)
    ]


def _by_silos(rows: torch.Tensor, log_prior: torch.Tensor) -> list[torch.Tensor]:
    """Group samples by the silos that may answer for them, in the order of each group's first sample."""
    groups: dict[tuple[bool, ...], list[int]] = {}
    for row in rows.tolist():
        groups.setdefault(tuple(torch.isneginf(log_prior[:, row]).tolist()), []).append(row)
    return [torch.tensor(group) for group in groups.values()]
