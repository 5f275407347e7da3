"""DfD, cooperative inference: the server refines a synthetic set with the silos' noise predictions.

Hahn & Lee, NeurIPS 2025. No weights travel. One noise level is one round: the server sends the samples, every silo
that holds their class answers with its own model's noise prediction, and the server composes the answers and moves
the samples. With ``parallel-levels`` a round is a Picard iteration over several levels, and rounds are fewer.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar
from uuid import uuid4

import numpy as np
import torch
from flwr.app import ArrayRecord, MetricRecord, MetricRecordValues
from numpy.typing import NDArray

from fedsynth.config import RunConfig
from fedsynth.config.methods import DfDSettings
from fedsynth.config.types import FEW_LABELS, LEAST_SILOS
from fedsynth.diffusion import codec_of, draw_initial_noise, make_scheduler, noise_schedule
from fedsynth.errors import RunError
from fedsynth.messages import EpsilonAnswer, transport
from fedsynth.mixture import ULAScheduler, log_prior
from fedsynth.mixture.screening import bound_weights
from strategies.base import Outcome, SynthesisStrategy, Task
from strategies.conversation.ask import Question, Quorum, replies_needed
from strategies.conversation.census import Census
from strategies.conversation.exchange import Exchange
from strategies.conversation.replicas import WHOM, Replication
from strategies.conversation.secure_sum import SecureSum, refuse_keyless
from strategies.cooperation.advice import ADVICE
from strategies.cooperation.calibration import steps_key, trusted_prior
from strategies.cooperation.certified_set import CERTIFIED_SET, CertifiedSet
from strategies.cooperation.cohort import Cohort, make_cohorts
from strategies.cooperation.cooperative_set import CooperativeSet, Wait
from strategies.cooperation.few_holders import IMAGES as DRAWN_IMAGES
from strategies.cooperation.few_holders import ROWS as DRAWN_ROWS
from strategies.cooperation.few_holders import DrawnByHolders
from strategies.cooperation.screener import Screener
from strategies.cooperation.secure_set import SecureSet, bounded_share
from strategies.own_models.local_training import train_local_models

logger = logging.getLogger("fedsynth")

SAMPLES, LABELS = "samples", "labels"
"""Names of the arrays that the rounds refine."""

IDLE_ROUNDS = 3
"""Rounds in a row in which nothing moves, until the classes that wait are given up."""

SUMS_ONLY = (
    "secure-aggregation: the server could read sums of the silos' noise predictions and no single one{but}; it could"
    " not screen them, {checked}; a sum by itself is no differential privacy"
)
"""What the reader of the dataset is told where answers were summed in secret."""
CHECKED = {True: "each silo checked its own model before the rounds", False: "and no silo checked its own model"}
"""By ``screening``."""

_NOTES: dict[Wait, str] = {
    "no answer": "its holders stopped answering before the end",
    "left out by screening": "screening left out the answers of its holders",
    "too few holders": "too few silos with a model fit to answer hold it, among whom a sum hides no answer",
    "no model fit to answer": "calibration found no holder's model fit to answer",
}
"""What the reader of the dataset is told about a class that is missing."""


class DfD(SynthesisStrategy):
    """Cooperative inference over the noise levels.

    With prior ``class`` a silo is only asked about classes it holds (:func:`fedsynth.mixture.log_prior`). Weights are
    the prior alone (``constant``), Eq. 9 (``energy``), or follow the samples' paths (``posterior``,
    :class:`fedsynth.mixture.PathPosterior`), whose evidence ``temperature`` divides: 1 for posterior weights, ∞ would
    make them constant. A silo's prior, or constant or energy weight, above ``max-silo-weight`` goes to the others that
    hold the class. For ``parallel-levels`` see :mod:`fedsynth.mixture.picard`, and for the server's memory
    :class:`~strategies.cooperation.cooperative_set.CooperativeSet`.
    """

    how = "each silo trained its own diffusion model and answered noise queries; only noise predictions travelled"
    quorum: ClassVar[Quorum] = "one"
    Settings = DfDSettings
    settings: DfDSettings

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.num_rounds = self.settings.dfd_rounds
        self._config = RunConfig()
        self._bound = 1.0
        self._rounds_done = 0
        self._idle = 0
        self._set: CooperativeSet | None = None
        self._sums: SecureSet | None = None
        self._replication: Replication | None = None
        self._certified: CertifiedSet | None = None
        self._drawn: DrawnByHolders | None = None
        self._ready: list[int] = []
        # By it silos know what they have answered in this run; random, but nothing computed depends on it.
        self._run_token = uuid4().hex

    def prepare(self, task: Task, exchange: Exchange) -> ArrayRecord:
        """Draw x_T, have the silos train their models, and find out which are fit to answer.

        Raises:
            UserError: a class that no silo holds.
            RunError: no silo's model is fit to answer.
        """
        self._config = task.config
        codec = codec_of(task.config, task.spec)
        self._bound = codec.bound
        prior = log_prior(self.settings.prior, task.census.label_counts, task.labels)
        if task.config.cooperation.secure_aggregation:
            return self._prepare_sums(task, exchange)
        logger.info("%s", ADVICE)
        if task.config.replicated:
            return self._prepare_replicated(task, exchange)
        train_local_models(exchange, task, self.quorum)
        screener = None
        # Langevin moves take samples off their noise level, where nobody knows what honest networks answer.
        if task.config.cooperation.screening and self.settings.sampler != "ula":
            prior = trusted_prior(prior, exchange, task)
            members = task.census.members

            def note(silo: int, why: str) -> None:
                exchange.reply_log.leave_out(members[silo].node_id, why)

            screener = Screener([member.name for member in members], note, codec.bound)
        self._set = self._new_set(task.labels, codec.shape, task.census, prior, screener)
        samples = draw_initial_noise(task.config.run.seed, len(task.labels), codec.shape)
        return transport.encode_tensors({SAMPLES: samples, LABELS: task.labels})

    def _prepare_replicated(self, task: Task, exchange: Exchange) -> ArrayRecord:
        """Draw x_T, and have the silos train their models, for rounds that they compose themselves."""
        self._replication = Replication(
            exchange, task.census, task.config, task.spec, self._run_token, task.audit, task.aggregators
        )
        logger.warning("%s sees the single noise predictions of all silos", self._replication.who)
        self._certified = CertifiedSet(task, self._replication, train_local_models(exchange, task, self.quorum))
        self.num_rounds = self._certified.levels_left
        samples = draw_initial_noise(task.config.run.seed, len(task.labels), codec_of(task.config, task.spec).shape)
        return transport.encode_tensors({SAMPLES: samples, LABELS: task.labels})

    def _prepare_sums(self, task: Task, exchange: Exchange) -> ArrayRecord:
        """Draw x_T, and have the silos train their models, for rounds in which the server sees sums only."""
        refuse_keyless(task.census)
        logger.warning(
            "secure-aggregation = true: nobody but the silo itself can look at its answers: one that answers falsely,"
            " or whose model is hardly trained, spoils its classes unnoticed"
        )
        self._form_sums(task, range(len(task.census)))  # refuses before anyone trains
        self._form_sums(task, train_local_models(exchange, task, self.quorum))
        assert self._sums is not None
        names = task.spec.classes
        pooled = [] if self._drawn is None else self._drawn.classes
        if pooled:
            logger.warning(
                "class %s: few silos hold it: each image is drawn by one of them from its own model, and seen as its",
                ", ".join(names[label] for label in pooled),
            )
        if lost := [names[label] for label in self._sums.few if label not in pooled]:
            logger.warning("no images of class %s: %s", ", ".join(lost), _NOTES["too few holders"])
        samples = draw_initial_noise(task.config.run.seed, len(task.labels), codec_of(task.config, task.spec).shape)
        return transport.encode_tensors({SAMPLES: samples, LABELS: task.labels})

    def _form_sums(self, task: Task, ready: Iterable[int]) -> None:
        """Settle what is summed, and who draws what is not.

        Args:
            task: the silos.
            ready: indices of those that have a model.
        """
        self._ready = sorted(ready)
        absent = torch.ones(len(task.census), 1, dtype=torch.bool)
        absent[self._ready] = False
        prior = log_prior(self.settings.prior, task.census.label_counts, task.labels).masked_fill(absent, -torch.inf)
        cohorts = self._cohorts(task.labels, codec_of(task.config, task.spec).shape, self._bounded(prior))
        # A silo answers no sum in which fewer hold a class than its policy wants, whether it holds the class or not.
        least_holders = max([LEAST_SILOS, *(policy.least_holders for policy in task.policies.values())])
        self._sums = SecureSet(task.labels, task.census, cohorts, least_holders)
        if task.config.cooperation.few_holders == "pooled":
            self._drawn = DrawnByHolders(task, self.settings.prior, self._sums.few, self._ready)

    def run_round(self, server_round: int, arrays: ArrayRecord, exchange: Exchange) -> tuple[ArrayRecord, MetricRecord]:
        """Ask the silos, or have their answers summed in secret or certified, and move the samples to the next level.

        Raises:
            RunError: too few usable answers.
        """
        if self._certified is not None:
            return self._certified_round(server_round, arrays, exchange, self._certified)
        if self._sums is None:
            return super().run_round(server_round, arrays, exchange)
        config, timestep = self._config, self._sums.timestep
        start = time.monotonic()
        sums = SecureSum(exchange, self._sums.census, self._run_token, self._sums.members)
        moved, experts, seconds = self._sums.move(
            sums,
            transport.decode(arrays[SAMPLES]),
            server_round,
            self.timeout,
            config.run.seed,
            config.recipe.num_train_timesteps,
            config.exchange.wire_dtype,
            config.exchange.max_message_mb,
        )
        self.note_duration(time.monotonic() - start)
        self._rounds_done = server_round
        self.num_rounds = server_round + self._sums.levels_left
        metrics: dict[str, MetricRecordValues] = {
            "timestep": timestep,
            "effective-experts": experts,
            "levels-done": 1.0,
            "function-evaluations": 1.0,
            "waiting-samples": 0,
            "client-seconds": seconds,
        }
        left = transport.encode_tensors({SAMPLES: moved, LABELS: self._sums.labels})
        if self._drawn is not None and not self._sums.levels_left:
            left.update(self._drawn.draw(exchange))
        return left, MetricRecord(metrics)

    def _certified_round(
        self, server_round: int, arrays: ArrayRecord, exchange: Exchange, certified: CertifiedSet
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Have the silos predict, compose and certify; a void round changes nothing."""
        needed = self.replies_needed(len(self.census))
        samples = transport.decode(arrays[SAMPLES])
        moved, measured = certified.move(exchange, samples, server_round, needed, self.timeout)
        self.note_duration(certified.asked_seconds)
        self._rounds_done = server_round
        self.num_rounds = server_round + certified.levels_left
        return transport.encode_tensors({SAMPLES: moved, LABELS: certified.labels}), MetricRecord(measured)

    def unknown_census(self, node_ids: Iterable[int], arrays: ArrayRecord) -> Census:
        """Return silos that hold every class of the set; the same ones in every round."""
        labels = transport.decode(arrays[LABELS])
        return self._set.census if self._set else Census.unknown(node_ids, int(labels.max()) + 1)

    def questions(self, server_round: int, arrays: ArrayRecord) -> list[Question[EpsilonAnswer]]:
        """Return what to ask: every silo for its noise prediction, for the samples whose class it holds.

        Args:
            server_round: 1 for the noisiest level.
            arrays: ``samples`` (N, C, H, W) and ``labels`` (N,).
        """
        if self._set is None:
            labels = transport.decode(arrays[LABELS])
            prior = log_prior(self.settings.prior, self.census.label_counts, labels)
            self._set = self._new_set(labels, arrays[SAMPLES].shape[1:], self.census, prior)
        exchange = self._config.exchange
        samples = transport.peek(arrays[SAMPLES])
        return [*self._set.questions(samples, server_round, exchange.wire_dtype, exchange.max_message_mb)]

    def replies_needed(self, asked: int) -> int:
        """Return how many silos must answer: none once a class is finished."""
        if self._set is not None and self._set.finished_rows.any():
            return 0
        return replies_needed(self._config.exchange.min_replies, asked, self.quorum)

    def aggregate(
        self, server_round: int, answers: Iterator[tuple[int, EpsilonAnswer]]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Compose the answers, whatever order they come in, and move the samples to the next level.

        A class of which no holder answers waits, and catches up in rounds after the last level if one returns.
        """
        if self._set is None:
            raise RunError("a round was aggregated before it was asked")
        timestep = self._set.timestep
        seconds = 0.0
        for silo, answer in answers:
            assert answer.rows is not None  # every question says which
            self._set.put(silo, answer.rows, answer.epsilon)
            seconds += answer.seconds
            del answer
        energy_scale = self.settings.energy_scale if self.settings.weights == "energy" else None
        # A bound on posterior weights would turn the union of the silos into their average: it bounds their prior.
        bound = 1.0 if self.settings.weights == "posterior" else self.settings.max_silo_weight
        moved, experts = self._set.move(energy_scale, bound, self._config.run.seed)
        self._rounds_done = server_round
        self._idle = 0 if experts else self._idle + 1
        self.num_rounds = server_round + (self._set.levels_left if self._idle < IDLE_ROUNDS else 0)
        metrics: dict[str, MetricRecordValues] = {
            "timestep": timestep,
            "effective-experts": experts,
            "levels-done": self._set.levels_done,
            "function-evaluations": self._set.evaluations,
            "waiting-samples": self._set.num_waiting,
            "client-seconds": seconds,
        }
        return transport.encode_tensors({SAMPLES: moved, LABELS: self._set.labels}), MetricRecord(metrics)

    def preview(self, task: Task, arrays: ArrayRecord, rows: torch.Tensor) -> NDArray[np.uint8]:
        """Return the samples as they are, noise and all."""
        return codec_of(task.config, task.spec).decode(transport.peek(arrays[SAMPLES])[rows])

    def finish(self, task: Task, arrays: ArrayRecord) -> Outcome:
        """Turn the last samples into images, without those that never got there.

        Raises:
            RunError: none got there.
        """
        moved = self._certified or self._sums or self._set
        finished = moved.finished_rows if moved else torch.ones(len(task.labels), dtype=torch.bool)
        lost = torch.unique(task.labels[~finished]).tolist()
        why: dict[int, Wait] = self._set.waits if self._set else {}
        if self._sums is not None:
            why = dict.fromkeys(self._sums.few, "too few holders")
            lost = [label for label in lost if self._drawn is None or label not in self._drawn.classes]
        if not finished.any():
            raise RunError(f"no class was finished: {self._remedy(set(why.values()))}")
        notes = tuple(
            f"no images of class {', '.join(task.spec.classes[label] for label in of_kind)}: {said}"
            for kind, said in _NOTES.items()
            if (of_kind := [label for label in lost if why.get(label, "no answer") == kind])
        )
        curves = {name: member.curve for name, member in zip(task.shown_names, task.census, strict=True)}
        images = codec_of(task.config, task.spec).decode(transport.decode(arrays[SAMPLES])[finished])
        labels = task.labels[finished].numpy()
        if self._sums is not None:
            notes = (*notes, *self._notes_on_sums(task))
        if DRAWN_IMAGES in arrays:
            rows = transport.decode(arrays[DRAWN_ROWS])
            order = torch.cat([torch.nonzero(finished).squeeze(1), rows]).argsort().numpy()
            images = np.concatenate([images, transport.decode(arrays[DRAWN_IMAGES]).numpy()])[order]
            labels = np.concatenate([labels, task.labels[rows].numpy()])[order]
        if self._certified is None or self._replication is None:
            return Outcome(images, labels, curves=curves, notes=notes)
        if task.audit is not None:
            self._certified.write_last_level(task.audit)
        chosen = task.config.replicas.aggregators
        notes = (*notes, CERTIFIED_SET.format(aggregators=chosen, whom=WHOM[chosen]))
        return Outcome(images, labels, curves=curves, notes=notes, certified=self._replication.certified())

    def _notes_on_sums(self, task: Task) -> Iterator[str]:
        pooled = [] if self._drawn is None else self._drawn.classes
        if self._drawn is not None and pooled:
            names = ", ".join(task.spec.classes[label] for label in pooled)
            yield (
                f"class {names}: too few silos hold it to hide an answer in a sum: each image was drawn by one of them"
                " from its own model, and the server saw by which"
            )
            yield from self._drawn.notes
        checked = CHECKED[task.config.cooperation.screening]
        yield SUMS_ONLY.format(checked=checked, but=", but of those classes drawn images" if pooled else "")

    def _remedy(self, why: set[Wait]) -> str:
        """Say what kept every class from being finished, and what helps."""
        if why == {"no answer"}:
            return "no holder answers any more; resume the run when the silos are back"
        if not why:  # continued after its last round
            return "the log says which answers were left out or did not come"
        rounds = "num-rounds" if self._config.run.strategy in FEW_LABELS else "dfd-rounds"
        absent = "some holders do not answer, of others " if "no answer" in why else ""
        return (
            f"{absent}all answers were left out, the log says why: if the silos are honest, their models are"
            f" undertrained or the rounds are too few: start a run with more {steps_key(self._config)} or"
            f" {rounds} ({self.settings.dfd_rounds}), or with screening = false"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return where every class stands, its posterior and what its sampler remembers."""
        if self._certified is not None and self._replication is not None:
            state = {"rounds": self._rounds_done, "run-token": self._run_token, **self._certified.state_dict()}
            return {**state, "replicas": self._replication.state_dict()}
        if self._sums is not None:
            state = {"rounds": self._rounds_done, "run-token": self._run_token, **self._sums.state_dict()}
            return {**state, "ready": self._ready, "notes": [] if self._drawn is None else list(self._drawn.notes)}
        return {"rounds": self._rounds_done, "idle": self._idle, **self._set.state_dict()} if self._set else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`; after :meth:`begin`."""
        if self._certified is not None and self._replication is not None:
            self._rounds_done, self._run_token = state["rounds"], state["run-token"]
            self._replication.load_state_dict(state["replicas"], self._run_token)
            self._certified.load_state_dict(state)
            self.num_rounds = self._rounds_done + self._certified.levels_left
        elif self._sums is not None:
            assert self._task is not None
            self._form_sums(self._task, state.get("ready", self._ready))
            self._sums.load_state_dict(state)
            if self._drawn is not None:
                self._drawn.notes = tuple(state["notes"])
            self._rounds_done, self._run_token = state["rounds"], state["run-token"]
            self.num_rounds = self._rounds_done + self._sums.levels_left
        elif self._set:
            self._set.load_state_dict(state)
            self._rounds_done, self._idle = state["rounds"], state["idle"]
            self.num_rounds = self._rounds_done + self._set.levels_left

    def _new_set(
        self,
        labels: torch.Tensor,
        shape: tuple[int, ...],
        census: Census,
        prior: torch.Tensor,
        screener: Screener | None = None,
    ) -> CooperativeSet:
        """Bound and normalise the prior (K, N), and cut the set into cohorts."""
        bounded = self._bounded(prior)
        cohorts = self._cohorts(labels, shape, bounded)
        return CooperativeSet(labels, shape, census, cohorts, bounded, screener, self.settings.parallel_levels)

    def _bounded(self, prior: torch.Tensor) -> torch.Tensor:
        """Bound and normalise the prior (K, N); where nobody has any, nobody gets some."""
        most = self.settings.max_silo_weight
        most = bounded_share(most) if self._config.cooperation.secure_aggregation else most
        orphaned = torch.isneginf(prior).all(0)
        bounded = bound_weights(prior.masked_fill(orphaned, 0.0).exp(), most).log()
        return bounded.masked_fill(orphaned, -torch.inf)

    def _cohorts(self, labels: torch.Tensor, shape: tuple[int, ...], bounded: torch.Tensor) -> list[Cohort]:
        follows_path = self.settings.weights == "posterior"
        cohorts = make_cohorts(labels, shape, self._scheduler, bounded, follows_path, self.settings.temperature)
        self.num_rounds = cohorts[0].num_levels
        return cohorts

    def _scheduler(self) -> Any:
        recipe = self._config.recipe
        if self.settings.sampler != "ula":
            return make_scheduler(recipe, self.settings.dfd_rounds, self.settings.sampler, self._bound)
        scheduler: ULAScheduler = ULAScheduler(
            **noise_schedule(recipe), step_scale=self.settings.step_scale, score_scale=self.settings.score_scale
        )
        scheduler.set_timesteps(self.settings.dfd_rounds)
        return scheduler
