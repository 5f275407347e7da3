"""The synthetic set of cooperative inference between two rounds: what to ask, what came back, where samples go."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from math import prod
from typing import Any

import torch

from fedsynth.messages import EpsilonRequest
from fedsynth.mixture import effective_experts
from fedsynth.mixture.picard import converged, picard_step
from fedsynth.mixture.screening import bound_weights
from strategies.conversation.census import Census
from strategies.cooperation.cohort import Cohort
from strategies.cooperation.questions import Level, cut, rows_in
from strategies.cooperation.screener import EqualGroups, Screener

logger = logging.getLogger("fedsynth")


class CooperativeSet:
    """Samples on their way from noise to images, with room for one round of answers.

    With a window of W noise levels every silo is asked about W states of every sample: where it stands, and guesses of
    the states that follow. The answers about state j of sample n lie at *place* j·N + n. A window costs W - 1 copies
    of the set for the guesses, which are part of every checkpoint, W more while the questions are built, and W times
    the room for answers: W copies for every silo.

    Args:
        labels: class of every sample (N,).
        shape: (C, H, W) of one.
        census: the silos.
        cohorts: the samples by class.
        log_prior: log prior weights (K, N); a silo is asked about samples it is not excluded from.
        screener: judges answers; None: whatever is finite counts.
        parallel_levels: noise levels that are worked on together, at least 1.

    Attributes:
        evaluations: states that a sample is asked about in this round, a mean over all samples.
        levels_done: levels that a sample moved in the last round, likewise.
    """

    def __init__(
        self,
        labels: torch.Tensor,
        shape: tuple[int, ...],
        census: Census,
        cohorts: list[Cohort],
        log_prior: torch.Tensor,
        screener: Screener | None = None,
        parallel_levels: int = 1,
    ) -> None:
        self._screener = screener
        self.labels = labels
        self.census = census
        self.cohorts = cohorts
        self._samples = torch.empty(0)
        # One room for all rounds. Untouched pages cost no memory: rows that nobody is asked about stay virtual.
        self._levels = min(parallel_levels, max((cohort.num_levels for cohort in cohorts), default=1))
        self._epsilon = torch.zeros((len(census), self._levels * len(labels), *shape))
        self._answered = torch.zeros(self._epsilon.shape[:2], dtype=torch.bool)
        self._asks = ~torch.isneginf(log_prior)
        self._waiting: set[int] = set()
        self.evaluations = 0.0
        self.levels_done = 0.0

    @property
    def finished_rows(self) -> torch.Tensor:
        """Which samples are images, bool (N,)."""
        finished = torch.zeros(len(self.labels), dtype=torch.bool)
        for cohort in self.cohorts:
            finished[cohort.rows] = cohort.finished
        return finished

    @property
    def num_waiting(self) -> int:
        """Samples that did not move in the last round and are no images yet."""
        return sum(len(self.cohorts[number].rows) for number in self._waiting)

    @property
    def levels_left(self) -> int:
        """Moves that the last cohort still needs."""
        return max(cohort.num_levels - cohort.level for cohort in self.cohorts)

    @property
    def timestep(self) -> int:
        """Where the foremost samples stand that are no images yet; 0 when all are."""
        return min((cohort.timestep for cohort in self.cohorts if not cohort.finished), default=0)

    def questions(
        self, samples: torch.Tensor, server_round: int, wire_dtype: str, max_message_mb: float
    ) -> list[tuple[int, EpsilonRequest]]:
        """Return what to ask every silo, by its index, about the set as it stands: ``samples`` (N, C, H, W).

        Without a window there is one question per noise level, with one it is a question about all of them; either is
        cut where it is larger than ``max_message_mb``. Silos that are asked about everything share the tensors, which
        are sent once.
        """
        self._samples = samples
        self._answered[:] = False
        states = self._states(samples)
        most = rows_in(max_message_mb, prod(states.shape[1:]), wire_dtype)
        levels = list(self._places_by_timestep())
        holders = self._asks.sum(0)
        numbers = sum(int((holders[places % len(self.labels)] > 0).sum()) for _, places in levels)
        self.evaluations = numbers / len(self.labels)
        asked: list[tuple[int, EpsilonRequest]] = []
        for together in [levels] if self._levels > 1 else [[level] for level in levels]:
            shared: dict[int, EpsilonRequest] = {}
            for k in range(len(self.census)):
                mine = [(timestep, places[self._asks_at(k, places)]) for timestep, places in together]
                everything = all(len(one[1]) == len(other[1]) for one, other in zip(mine, together, strict=True))
                for part, message in enumerate(cut(mine, most)):
                    request = shared.get(part) if everything else None
                    request = request or self._request(states, message, server_round, wire_dtype)
                    if everything:
                        shared[part] = request
                    asked.append((k, request))
        return asked

    def _asks_at(self, k: int, places: torch.Tensor) -> torch.Tensor:
        return self._asks[k, places % len(self.labels)]

    def _states(self, samples: torch.Tensor) -> torch.Tensor:
        """Return the samples at all places; what nobody stands at is anything."""
        if self._levels == 1:
            return samples
        states = samples.new_empty((self._epsilon.shape[1], *samples.shape[1:]))
        for cohort in self.cohorts:
            if cohort.finished:
                continue
            guesses = cohort.guesses(samples[cohort.rows], self._levels)
            for places, guess in zip(self._places(cohort), guesses, strict=True):
                states[places] = guess
        return states

    def _places(self, cohort: Cohort) -> list[torch.Tensor]:
        """Return the places (n,) of a cohort's samples at every level of its window."""
        levels = len(cohort.levels_ahead(self._levels))
        return [offset * len(self.labels) + cohort.rows for offset in range(levels)]

    def _places_by_timestep(self) -> Iterator[Level]:
        """Yield timesteps, noisiest first, with the places that stand there in ascending order."""
        found: dict[int, list[torch.Tensor]] = {}
        for cohort in self.cohorts:
            for timestep, places in zip(cohort.levels_ahead(self._levels), self._places(cohort), strict=True):
                found.setdefault(timestep, []).append(places)
        for timestep in sorted(found, reverse=True):
            yield timestep, torch.cat(found[timestep]).sort().values

    def _request(
        self, states: torch.Tensor, message: list[Level], server_round: int, wire_dtype: str
    ) -> EpsilonRequest:
        places = torch.cat([places for _, places in message])
        window = self._levels > 1
        timesteps = [torch.full((len(places),), timestep) for timestep, places in message]
        return EpsilonRequest(
            samples=states if len(places) == len(states) else states[places],
            labels=self.labels[places % len(self.labels)],
            timestep=None if window else message[0][0],
            timesteps=torch.cat(timesteps) if window else None,
            server_round=server_round,
            rows=places,
            wire_dtype=wire_dtype,
        )

    def put(self, silo: int, places: torch.Tensor, epsilon: torch.Tensor) -> None:
        """Keep a silo's answer (n, C, H, W) about the samples at ``places`` (n,)."""
        self._epsilon[silo].index_copy_(0, places, epsilon)
        self._answered[silo, places] = True

    def move(self, energy_scale: float | None, max_weight: float, seed: int) -> tuple[torch.Tensor, float]:
        """Move every cohort of which a holder gave a sound answer by one level at least; the others wait.

        Args:
            energy_scale: λ of energy weights; None: the prior, or the posterior.
            max_weight: largest weight of a silo.
            seed: of the run.

        Returns:
            The set (N, C, H, W), and the mean of the effective experts behind the moves; 0 if none moved.
        """
        # The result takes the room of the first silo's answers, which are used up cohort by cohort.
        moved = self._epsilon[0, : len(self.labels)]
        experts: list[torch.Tensor] = []
        waiting: set[int] = set()
        self.levels_done = 0.0
        for cohort in self.cohorts:
            mine = self._samples[cohort.rows]
            stands, behind = self._advance(cohort, mine, energy_scale, max_weight, seed)
            moved[cohort.rows] = stands
            self.levels_done += len(behind) * len(cohort.rows) / len(self.labels)
            experts += behind
            if not behind and not cohort.finished:
                waiting.add(cohort.number)
        self._report(waiting)
        if self._screener is not None:
            self._screener.report()
        return moved, float(torch.cat(experts).mean()) if experts else 0.0

    def _advance(
        self, cohort: Cohort, samples: torch.Tensor, energy_scale: float | None, max_weight: float, seed: int
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Make a Picard iteration over a cohort's window, and move it past the levels that have converged.

        A silo counts that answered about all of the window. Its answers are judged where they move samples for good:
        at the state where they stand, and at guesses that proved right. Other guesses lie off their noise level, where
        no check tells an honest network from another; what a silo says there decides what is asked next, no more.

        Returns:
            Where the samples stand (n, C, H, W), and the effective experts (n,) behind every level that is done.
        """
        places = self._places(cohort)
        if not places:
            return samples, []
        answered = self._answered[:, torch.cat(places)].all(1)
        states, stand = [samples], cohort.state_dict()
        experts: list[torch.Tensor] = []
        equal: EqualGroups = ()
        for place, guess in zip(places, cohort.guesses(samples, self._levels), strict=True):
            epsilon, level = self._epsilon[:, place], len(states) - 1
            stands = len(experts) == level and (level == 0 or converged(states[-1], guess, cohort.noise_std))
            if stands and self._screener is not None:
                answered, equal = self._screener.admit(cohort, guess, epsilon, answered)
            if not answered.any():
                break
            weights = bound_weights(cohort.weigh(epsilon, answered, energy_scale), max_weight, equal)
            moved = cohort.move(guess, epsilon, answered, weights, seed)
            states.append(picard_step(moved, states[-1], guess))
            if stands:
                experts.append(effective_experts(weights))
                stand = cohort.state_dict()
            elif not states[-1].isfinite().all():
                # Of a guess that overflowed, honest networks would make nonsense, and be left out for it.
                states.pop()
                break
        if experts:
            cohort.settle(stand, states[len(experts) + 1 :])
        return states[len(experts)], experts

    def _report(self, waiting: set[int]) -> None:
        """Log changes of what waits, by class index."""
        if new := self._labels_of(waiting - self._waiting):
            logger.warning("class index %s waits: none of its holders answered", new)
        if back := self._labels_of(self._waiting - waiting):
            logger.info("class index %s goes on", back)
        self._waiting = waiting

    def _labels_of(self, numbers: set[int]) -> str:
        return ", ".join(map(str, sorted({self.cohorts[number].label for number in numbers})))

    def state_dict(self) -> dict[str, Any]:
        """Return where every cohort stands."""
        return {"cohorts": [cohort.state_dict() for cohort in self.cohorts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`, on a fresh set."""
        for cohort, known in zip(self.cohorts, state["cohorts"], strict=True):
            cohort.load_state_dict(known)
