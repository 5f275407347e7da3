"""DfD, cooperative inference: the server refines a synthetic set with the silos' noise predictions.

Hahn & Lee, NeurIPS 2025. No weights travel. One noise level is one round: the server sends the samples, every silo
that holds their class answers with its own model's noise prediction, and the server composes the answers and moves
the samples. With ``parallel-levels`` a round is a Picard iteration over several levels, and rounds are fewer.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from flwr.app import ArrayRecord, ConfigRecord, ConfigRecordValues, Message, MetricRecord, MetricRecordValues
from flwr.serverapp import Grid

from fedsynth.config import AUTO, RunConfig, Scalar
from fedsynth.diffusion import STOCHASTIC, draw_initial_noise, make_scheduler, to_uint8
from fedsynth.errors import RunError
from fedsynth.messages import wire
from fedsynth.mixture import FlowPosterior, PathPosterior, choose_experts, log_prior
from fedsynth.mixture.screening import Thresholds, bound_weights
from fedsynth.seeding import derive_seed, make_generator
from strategies.base import Outcome, SynthesisStrategy, Task
from strategies.checks import in_range, known_sampler, one_of
from strategies.conversation.census import Census
from strategies.conversation.replies import sound
from strategies.cooperation.advice import advice
from strategies.cooperation.calibration import trusted_prior
from strategies.cooperation.cohort import PosteriorKind, make_cohorts
from strategies.cooperation.cooperative_set import CooperativeSet
from strategies.cooperation.sampler_rules import corrector_of, langevin_scheduler, refuse_posterior, window_of
from strategies.cooperation.screener import Screener
from strategies.own_models.local_training import train_local_models

logger = logging.getLogger("fedsynth")

WEIGHTS = ("constant", "energy", "posterior")
SLOWNESS, LEAST_PATIENCE = 10, 60.0
"""A silo is given up for a round after this multiple of the slowest answer so far, and this many seconds at least."""
IDLE_ROUNDS = 3
"""Rounds in a row in which nothing moves, until the classes that wait are given up."""


class DfD(SynthesisStrategy):
    """Cooperative inference over the noise levels.

    Args:
        dfd_rounds: noise levels visited, one round each, and one for every corrector move.
        sampler: how samples move on ε*: one of :data:`fedsynth.diffusion.SAMPLERS`, or ``ula``, the paper's Langevin
            moves.
        prior: ``class``, ``size`` or ``uniform``, see :func:`fedsynth.mixture.log_prior`. With ``class`` a silo is
            only asked about classes it holds.
        weights: ``constant`` (the prior), ``energy`` (Eq. 9) or ``posterior`` (:class:`fedsynth.mixture.PathPosterior`
            with samplers whose moves carry noise, :class:`fedsynth.mixture.FlowPosterior` with the others but ``ula``:
            there silos evaluate their networks twice).
        temperature: what a path says for and against a silo is divided by it: 1 for posterior weights, ∞ would make
            them constant. With ``posterior`` only.
        experts_per_sample: silos that answer for a sample, see :func:`fedsynth.mixture.choose_experts`; 0: all who
            hold its class.
        energy_scale: λ in the energy weights.
        score_scale: λ in the score, with ``ula`` only.
        step_scale: c of the Langevin step size, of ``ula`` and of correctors; like p our choice, as the paper gives
            none.
        step_power: p of the Langevin step size.
        corrector_steps: Langevin moves at every noise level but the first, before the sampler's own, see
            :class:`fedsynth.mixture.LangevinCorrector`; not with ``posterior`` or ``ula``.
        min_gain, max_excess: what an answer must satisfy to count, see :class:`fedsynth.mixture.screening.Thresholds`.
        max_silo_weight: largest share of a sample that a silo's prior, or constant or energy weight, may have where
            there are others; what is above goes to them.
        parallel_levels: noise levels that silos are asked about in one message, with ``ddim`` and ``ddpm``; 1: one
            after the other. See :mod:`fedsynth.mixture.picard`, and for the server's memory
            :class:`~strategies.cooperation.cooperative_set.CooperativeSet`.
        picard_tolerance: change in an iteration, relative to the noise of an ancestral move, up to which a state
            counts as converged.

    Raises:
        UserError: unknown choice, or choices that do not go together (:mod:`strategies.cooperation.sampler_rules`).
    """

    how = "each silo trained its own diffusion model and answered noise queries; only noise predictions travelled"
    PRESETS: ClassVar[dict[str, dict[str, Scalar]]] = {
        "default": {},
        "paper": {
            "dfd-rounds": 1000,
            "sampler": "ula",
            "prior": "size",
            "weights": "energy",
            "energy-scale": 2.0,
            "score-scale": 2.0,
        },
    }

    def __init__(
        self,
        *,
        dfd_rounds: int = 10,
        sampler: str = "sde-dpmsolver++",
        prior: str = "class",
        weights: str = "posterior",
        temperature: float = 1.0,
        experts_per_sample: int = 0,
        energy_scale: float = 1.0,
        score_scale: float = 1.0,
        step_scale: float = 0.2,
        step_power: float = 1.0,
        corrector_steps: int = 0,
        min_gain: float = 0.1,
        max_excess: float = 1.2,
        max_silo_weight: float = 0.9,
        parallel_levels: int = 1,
        picard_tolerance: float = 0.1,
    ) -> None:
        self.dfd_rounds = self.num_rounds = dfd_rounds
        self.sampler = known_sampler(sampler, "ula")
        self.weights, self.prior = one_of("weights", weights, WEIGHTS), prior
        refuse_posterior(sampler, weights, temperature)
        self.temperature, self.experts_per_sample = temperature, experts_per_sample
        self.energy_scale, self.score_scale = energy_scale, score_scale
        self.step_scale, self.step_power, self.corrector_steps = step_scale, step_power, corrector_steps
        self.min_gain, self.max_excess = min_gain, max_excess
        self.max_silo_weight = in_range("max-silo-weight", max_silo_weight, 0, 1, low_open=True)
        self.parallel_levels, self.picard_tolerance = parallel_levels, picard_tolerance
        self._window = window_of(sampler, weights, parallel_levels, picard_tolerance)
        self._corrector = corrector_of(sampler, weights, parallel_levels, corrector_steps, step_scale, step_power)
        self._thresholds, self._config = Thresholds(min_gain, max_excess), RunConfig()
        self._min_replies, self._rounds_done, self._idle = 1, 0, 0
        self._asked_at, self._slowest = time.monotonic(), 0.0
        self._set: CooperativeSet | None = None

    @classmethod
    def defaults(cls, config: RunConfig) -> dict[str, Scalar]:
        """The constructor's defaults, changed by ``dfd-preset``; weights that suit the moves if some were chosen."""
        followed = config.sampling.sampler in (AUTO, *STOCHASTIC)
        followed = followed and config.cooperation.corrector_steps in (AUTO, 0)
        weights: dict[str, Scalar] = {} if followed else {"weights": "constant"}
        return {**super().defaults(config), **weights, **cls.PRESETS[config.cooperation.dfd_preset]}

    def begin(self, task: Task, grid: Grid) -> ArrayRecord:
        """Draw x_T, have the silos train their models, and find out which are fit to answer.

        Raises:
            UserError: a class that no silo holds.
            RunError: no silo's model is fit to answer.
        """
        self._config, asked = task.config, task.config.exchange.min_replies
        self.patience = self._patience(0.0)
        self._min_replies = 1 if asked == AUTO else asked
        prior = log_prior(self.prior, task.census.label_counts, task.labels)
        logger.info("%s", advice(task.census.label_counts))
        train_local_models(grid, task.census, task.spec, task.config, self._min_replies)
        screener = None
        # Langevin moves take samples off their noise level, where nobody knows what honest networks answer.
        if task.config.cooperation.screening and self.sampler != "ula":
            prior = trusted_prior(prior, grid, task, self._thresholds)
            screener = Screener([member.name for member in task.census], self._thresholds)
        self._set = self._new_set(task.labels, task.spec.shape, task.census, prior, screener)
        samples = draw_initial_noise(task.config.run.seed, len(task.labels), task.spec.shape)
        return wire.encode_tensors({wire.SAMPLES: samples, wire.LABELS: task.labels})

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask every silo for its noise prediction, for the samples whose class it holds.

        Args:
            server_round: 1 for the noisiest level.
            arrays: ``samples`` (N, C, H, W) and ``labels`` (N,).
            config: sent along.
            grid: where the silos are, if no census has been taken.
        """
        if self._set is None:
            labels = wire.decode(arrays[wire.LABELS])
            census = Census.unknown(grid.get_node_ids(), int(labels.max()) + 1)
            prior = log_prior(self.prior, census.label_counts, labels)
            self._set = self._new_set(labels, arrays[wire.SAMPLES].shape[1:], census, prior)
        members, exchange = self._set.census.members, self._config.exchange
        self._asked_at = time.monotonic()
        return [
            wire.request(
                members[question.silo].node_id,
                wire.EPSILON,
                {**config, "server-round": server_round, **question.config, **self._probe(question.timestep)},
                question.arrays,
                exchange.reply_timeout,
            )
            for question in self._set.questions(arrays, exchange.wire_dtype, exchange.max_message_mb)
        ]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Compose the answers, whatever order they come in, and move the samples to the next level.

        A class of which no holder answers waits, and catches up in rounds after the last level if one returns.

        Raises:
            RunError: too few answers, while no class is finished.
        """
        if self._set is None:
            raise RunError("aggregate_train before configure_train")
        timestep = self._set.timestep
        needed = 0 if self._set.finished_rows.any() else min(self._min_replies, self._set.num_asked)
        seconds = 0.0
        asked = self._set
        for worked in sound(replies, needed, asked.read, asked.name_of, lambda: asked.num_answered):
            seconds += worked
            self._slowest = max(self._slowest, time.monotonic() - self._asked_at)
        self.patience = self._patience(self._slowest)
        energy_scale = self.energy_scale if self.weights == "energy" else None
        # A bound on posterior weights would turn the union of the silos into their average: it bounds their prior.
        bound = 1.0 if self.weights == "posterior" else self.max_silo_weight
        moved, experts = self._set.move(energy_scale, bound, self._config.run.seed)
        self._rounds_done, self._idle = server_round, 0 if experts else self._idle + 1
        self.num_rounds = server_round + (self._set.levels_left if self._idle < IDLE_ROUNDS else 0)
        metrics: dict[str, MetricRecordValues] = {
            "timestep": timestep,
            "effective-experts": experts,
            "levels-done": self._set.levels_done,
            "function-evaluations": self._set.evaluations,
            "waiting-samples": self._set.num_waiting,
            "client-seconds": seconds,
        }
        return wire.encode_tensors({wire.SAMPLES: moved, wire.LABELS: self._set.labels}), MetricRecord(metrics)

    def finish(self, task: Task, arrays: ArrayRecord) -> Outcome:
        """Turn the last samples into images, without those that never got there.

        Raises:
            RunError: none got there.
        """
        finished = self._set.finished_rows if self._set else torch.ones(len(task.labels), dtype=torch.bool)
        if not finished.any():
            raise RunError("no class was finished: every holder is missing; resume the run when silos are back")
        lost = torch.unique(task.labels[~finished]).tolist()
        names = ", ".join(task.spec.classes[label] for label in lost)
        notes = (f"no images of class {names}: its holders stopped answering before the end",) if lost else ()
        curves = {member.name: member.curve for member in task.census}
        images = to_uint8(wire.decode(arrays[wire.SAMPLES])[finished])
        return Outcome(images, task.labels[finished].numpy(), curves=curves, notes=notes)

    def state_dict(self) -> dict[str, Any]:
        """Return where every class stands, its posterior and what its sampler remembers."""
        return {"rounds": self._rounds_done, "idle": self._idle, **self._set.state_dict()} if self._set else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`; after :meth:`begin`."""
        if self._set:
            self._set.load_state_dict(state)
            self._rounds_done, self._idle = state["rounds"], state["idle"]
            self.num_rounds = self._rounds_done + self._set.levels_left

    @property
    def _posterior(self) -> PosteriorKind | None:
        if self.weights != "posterior":
            return None
        return PathPosterior if self.sampler in STOCHASTIC else FlowPosterior

    def _probe(self, timestep: int | None) -> dict[str, ConfigRecordValues]:
        """Say how divergences are estimated: all silos get the same probe, so that its errors nearly cancel."""
        if self._posterior is not FlowPosterior or timestep is None:
            return {}
        return {wire.PROBE_SEED: derive_seed(self._config.run.seed, "divergence", timestep)}

    def _patience(self, slowest: float) -> float | None:
        """Seconds to wait in a round, once it is known how long silos take: one that is gone must not cost an hour."""
        asked = self._config.exchange.round_timeout
        if asked != AUTO:
            return asked
        return max(LEAST_PATIENCE, SLOWNESS * slowest) if slowest else None

    def _new_set(
        self,
        labels: torch.Tensor,
        shape: tuple[int, ...],
        census: Census,
        prior: torch.Tensor,
        screener: Screener | None = None,
    ) -> CooperativeSet:
        """Bound and normalise the prior (K, N), draw who answers for what, and cut the set into cohorts."""
        alone = torch.isneginf(prior).all(0)
        bounded = bound_weights(prior.masked_fill(alone, 0.0).exp(), self.max_silo_weight).log()
        bounded = bounded.masked_fill(alone, -torch.inf)
        if self.experts_per_sample:
            generator = make_generator(self._config.run.seed, "experts")
            bounded = choose_experts(bounded, labels, self.experts_per_sample, generator)
        cohorts = make_cohorts(
            labels, shape, self._scheduler, bounded, self._posterior, self.temperature, self._corrector
        )
        self.num_rounds = cohorts[0].num_levels
        divergences = self._posterior is FlowPosterior
        return CooperativeSet(labels, shape, census, cohorts, bounded, screener, self._window, divergences)

    def _scheduler(self) -> Any:
        diffusion = self._config.diffusion
        if self.sampler != "ula":
            return make_scheduler(diffusion, self.dfd_rounds, self.sampler)
        return langevin_scheduler(diffusion, self.dfd_rounds, self.step_scale, self.step_power, self.score_scale)
