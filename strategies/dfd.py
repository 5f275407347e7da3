"""DfD, cooperative inference: the server refines a synthetic set with the silos' noise predictions.

Hahn & Lee, NeurIPS 2025. No weights travel. One noise level is one round: the server sends the samples, every silo
that holds their class answers with its own model's noise prediction, and the server composes the answers and moves
the samples.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, MetricRecordValues
from flwr.serverapp import Grid

from fedsynth import wire
from fedsynth.config import Diffusion, RunConfig, Scalar
from fedsynth.diffusion import draw_initial_noise, make_scheduler, to_uint8
from fedsynth.errors import RunError, UserError, unknown_choice
from fedsynth.mixture import (
    PathPosterior,
    ULAScheduler,
    compose,
    effective_experts,
    energy,
    log_prior,
    responsibilities,
    row_slices,
)
from fedsynth.seeding import make_generator
from strategies.base import Outcome, SynthesisStrategy, Task
from strategies.census import Census, train_local_models
from strategies.replies import noise_prediction, seconds_worked, usable

logger = logging.getLogger("fedsynth")

WEIGHTS = ("constant", "energy", "posterior")


class DfD(SynthesisStrategy):
    """Cooperative inference over the noise levels.

    Args:
        dfd_rounds: noise levels visited, one round each.
        sampler: ``ddpm`` (ancestral moves on ε*) or ``ula`` (the paper's Langevin moves).
        prior: ``class``, ``size`` or ``uniform``, see :func:`fedsynth.mixture.log_prior`. With ``class`` a silo is
            only asked about classes it holds.
        weights: ``constant`` (the prior), ``energy`` (Eq. 9) or ``posterior`` (:class:`fedsynth.mixture.PathPosterior`,
            with ``ddpm`` only).
        energy_scale: λ in the energy weights.
        score_scale: λ in the score, with ``ula`` only.
        step_scale: c of the Langevin step size; like p our choice, as the paper gives none.
        step_power: p of the Langevin step size.

    Raises:
        UserError: unknown choice, or posterior weights without ancestral moves.
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
        dfd_rounds: int = 25,
        sampler: str = "ddpm",
        prior: str = "class",
        weights: str = "posterior",
        energy_scale: float = 1.0,
        score_scale: float = 1.0,
        step_scale: float = 0.2,
        step_power: float = 1.0,
    ) -> None:
        if weights not in WEIGHTS:
            raise unknown_choice("weights", weights, WEIGHTS)
        if sampler not in ("ddpm", "ula"):
            raise unknown_choice("sampler", sampler, ("ddpm", "ula"))
        if weights == "posterior" and sampler != "ddpm":
            raise UserError(f"weights = 'posterior' needs sampler = 'ddpm', not '{sampler}'")
        self.dfd_rounds = self.num_rounds = dfd_rounds
        self.sampler, self.prior, self.weights = sampler, prior, weights
        self.energy_scale, self.score_scale = energy_scale, score_scale
        self.step_scale, self.step_power = step_scale, step_power
        self._config = RunConfig()
        self._min_replies = 1
        self._state: _Mixture | None = None

    @classmethod
    def defaults(cls, config: RunConfig) -> dict[str, Scalar]:
        """The constructor's defaults, changed by ``dfd-preset``."""
        return {**super().defaults(config), **cls.PRESETS[config.cooperation.dfd_preset]}

    def begin(self, task: Task, grid: Grid) -> ArrayRecord:
        """Draw x_T and have the silos train their models.

        Raises:
            UserError: a class that no silo holds.
        """
        self._config, self._min_replies = task.config, task.min_replies
        self._state = self._mixture(task.spec.shape, task.labels, task.census)
        train_local_models(grid, task.census, task.spec, task.config)
        samples = draw_initial_noise(task.config.run.seed, len(task.labels), task.spec.shape)
        return wire.encode_tensors({wire.SAMPLES: samples, wire.LABELS: task.labels})

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask every silo for its noise prediction at the round's level, for the samples whose class it holds.

        Args:
            server_round: 1 for the noisiest level.
            arrays: ``samples`` (N, C, H, W) and ``labels`` (N,).
            config: sent along.
            grid: where the silos are, if no census has been taken.
        """
        if self._state is None:
            labels = wire.decode(arrays[wire.LABELS])
            census = Census.unknown(grid.get_node_ids(), int(labels.max()) + 1)
            self._state = self._mixture(arrays[wire.SAMPLES].shape[1:], labels, census)
        state = self._state
        state.arrays = arrays
        state.timestep = int(state.scheduler.timesteps[server_round - 1])
        content = {**config, "server-round": server_round, "timestep": state.timestep}
        dtype, ttl = self._config.exchange.wire_dtype, self._config.exchange.reply_timeout
        return [
            wire.request(member.node_id, wire.EPSILON, content, record, ttl)
            for member, record in zip(state.census, state.questions(dtype), strict=True)
            if record is not None
        ]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Compose the answers, whatever order they come in, and move the samples to the next level.

        Raises:
            RunError: too few answers, or a class of which no silo answered.
        """
        state = self._state
        if state is None:
            raise RunError("aggregate_train before configure_train")
        seconds = state.collect(usable(replies, min(self._min_replies, state.num_asked)))
        weights = self._weigh(state)
        moved = state.move(weights, make_generator(self._config.run.seed, "cooperative-noise", server_round))
        metrics: dict[str, MetricRecordValues] = {
            "timestep": state.timestep,
            "effective-experts": float(effective_experts(weights).mean()),
            "client-seconds": seconds,
        }
        return wire.encode_tensors({wire.SAMPLES: moved, wire.LABELS: state.labels}), MetricRecord(metrics)

    def finish(self, task: Task, arrays: ArrayRecord) -> Outcome:
        """Turn the last samples into images."""
        curves = {member.name: member.curve for member in task.census}
        return Outcome(to_uint8(wire.decode(arrays[wire.SAMPLES])), task.labels.numpy(), curves=curves)

    def state_dict(self) -> dict[str, Any]:
        """Return the logits of the posterior weights, (K, N)."""
        return {"logits": self._state.posterior.logits} if self._state and self._state.posterior else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`; after :meth:`begin`."""
        if self._state and self._state.posterior:
            self._state.posterior.logits = state["logits"]

    def _mixture(self, shape: tuple[int, ...], labels: torch.Tensor, census: Census) -> _Mixture:
        prior = log_prior(self.prior, census.label_counts, labels)
        posterior = PathPosterior(prior) if self.weights == "posterior" else None
        return _Mixture(shape, labels, census, self._scheduler(self._config.diffusion), prior, posterior)

    def _scheduler(self, diffusion: Diffusion) -> Any:
        if self.sampler == "ddpm":
            return make_scheduler(diffusion, self.dfd_rounds)
        scheduler = ULAScheduler(
            num_train_timesteps=diffusion.num_train_timesteps,
            beta_start=diffusion.beta_start,
            beta_end=diffusion.beta_end,
            step_scale=self.step_scale,
            step_power=self.step_power,
            score_scale=self.score_scale,
        )
        scheduler.set_timesteps(self.dfd_rounds)
        return scheduler

    def _weigh(self, state: _Mixture) -> torch.Tensor:
        """Weights (K, N) of those that answered."""
        logits = state.posterior.logits if state.posterior is not None else state.log_prior
        present = logits.masked_fill(~state.answered, -torch.inf)
        lost = sorted(set(state.labels[torch.isneginf(present).all(0)].tolist()))
        if lost:
            raise RunError(f"no silo answered for class index {lost}: every holder is missing")
        if self.weights == "energy":
            return responsibilities(present, energy(state.epsilon), self.energy_scale)
        return torch.softmax(present, dim=0)


class _Mixture:
    """Where the samples of one run stand, with room for one round of answers."""

    def __init__(
        self,
        shape: tuple[int, ...],
        labels: torch.Tensor,
        census: Census,
        scheduler: Any,
        prior: torch.Tensor,
        posterior: PathPosterior | None,
    ) -> None:
        self.labels, self.census, self.scheduler = labels, census, scheduler
        self.log_prior, self.posterior = prior, posterior
        self.arrays, self.timestep = ArrayRecord(), -1
        # One room for all rounds. Untouched pages cost no memory: rows that nobody is asked about stay virtual.
        self.epsilon = torch.zeros((len(census), len(labels), *shape))
        self.answered = torch.zeros((len(census), len(labels)), dtype=torch.bool)
        self._rows = [torch.nonzero(~torch.isneginf(row)).squeeze(1) for row in prior]

    @property
    def num_asked(self) -> int:
        """Silos that hold something of what is to be drawn."""
        return sum(len(rows) > 0 for rows in self._rows)

    def questions(self, wire_dtype: str) -> Iterable[ArrayRecord | None]:
        """Samples and labels for each silo; None for a silo that holds no class asked for.

        Silos that are asked about everything share one record, which Flower uploads once.
        """
        samples = wire.peek(self.arrays[wire.SAMPLES])
        whole = self.arrays if wire_dtype == "float32" else self._question(samples, slice(None), wire_dtype)
        for rows in self._rows:
            if len(rows) == len(self.labels):
                yield whole
            else:
                yield self._question(samples, rows, wire_dtype) if len(rows) else None

    def _question(self, samples: torch.Tensor, rows: torch.Tensor | slice, wire_dtype: str) -> ArrayRecord:
        return wire.encode_tensors({wire.SAMPLES: samples[rows], wire.LABELS: self.labels[rows]}, wire_dtype)

    def collect(self, replies: Iterable[Message]) -> float:
        """Put every answer in its silo's place and let it go; return the seconds the silos worked."""
        self.answered[:] = False
        seconds = 0.0
        for reply in replies:
            k = self.census.position(reply)
            if k is None:
                logger.warning("answer of an unknown silo left out")
                continue
            rows = self._rows[k]
            try:
                seconds += seconds_worked(reply)
                self.epsilon[k].index_copy_(0, rows, noise_prediction(reply, (len(rows), *self.epsilon.shape[2:])))
                self.answered[k, rows] = True
            except ValueError as error:
                logger.warning("%s left out: %s", self.census.members[k].name, error)
            del reply
        return seconds

    def move(self, weights: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Compose the answers and move the samples one level, in slices; return the moved samples.

        In slices because a scheduler's step holds half a dozen copies of what it moves.
        """
        samples, t = wire.peek(self.arrays[wire.SAMPLES]), self.timestep
        moved = torch.empty_like(samples)
        for rows in row_slices(self.epsilon):
            epsilon = compose(self.epsilon[:, rows], weights[:, rows])
            moved[rows] = self.scheduler.step(epsilon, t, samples[rows], generator=generator).prev_sample
        if self.posterior is not None:
            self.posterior.update(samples, moved, self.epsilon, self.scheduler, t, self.answered)
        # The answers are used up: the result takes the room of one, so that there is place for its encoding.
        return self.epsilon[0].copy_(moved)
