"""What every strategy of fedsynth can do."""

from __future__ import annotations

import inspect
import logging
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from fedsynth.config import RunConfig, Scalar, StrategySettings
from fedsynth.config.keys import parse
from fedsynth.data import Federation, LabelledImages
from fedsynth.diffusion.denoiser import Denoiser
from fedsynth.errors import RunError
from fedsynth.output import ReportTable
from fedsynth.plugins import is_plugin, load_plugin
from fedsynth.policy import SiloPolicy
from fedsynth.spec import ImageSpec
from fedsynth.text import visible
from strategies.conversation.ask import DrivenRound, Question, Quorum, ask, replies_needed
from strategies.conversation.census import Census
from strategies.conversation.exchange import Exchange
from strategies.conversation.waiting import round_timeout

logger = logging.getLogger("fedsynth")

A = TypeVar("A")


@dataclass
class Task:
    """What the server knows when the rounds begin.

    Attributes:
        config: the run's configuration, all defaults resolved.
        spec: image format and classes.
        census: the silos.
        labels: class of every synthetic image (N,), the same for every method of a seed.
        federation: the simulated silos' data; None when the silos are real.
        reference: train and test fold of real images that the operator owns, where the silos are real.
        policies: what real silos allow, by name; empty in a simulation.
        audit: folder that receives what is signed in a replicated run.
        run_token: where labels are few, by which silos know what they have pseudo-labelled for the run; otherwise None.
        aggregators: nodes that aggregate and are no silos; None: there are none.
        spool: folder for what is too large for memory, which goes with the run; None: there is none.
    """

    config: RunConfig
    spec: ImageSpec
    census: Census
    labels: torch.Tensor
    federation: Federation | None = None
    reference: tuple[LabelledImages, LabelledImages] | None = None
    policies: Mapping[str, SiloPolicy] = field(default_factory=dict)
    audit: Path | None = None
    run_token: str | None = None
    aggregators: Census | None = None
    spool: Path | None = None

    @property
    def real_folds(self) -> tuple[LabelledImages, LabelledImages] | None:
        """Train and test fold of the real images that the server may look at; None if it has none."""
        return (self.federation.train, self.federation.test) if self.federation else self.reference

    @property
    def shown_names(self) -> tuple[str, ...]:
        """Names of the silos as a reader knows them, in their order: natural silos' own, such as ``bccd``."""
        natural = self.federation.silo_names if self.federation else ()
        known = {f"silo-{k}": visible(name) for k, name in enumerate(natural)}
        return tuple(known.get(member.name, member.name) for member in self.census)

    @property
    def sampler(self) -> str:
        """How one model is sampled; Langevin moves are for composed noise only."""
        sampler = str(self.config.to_run_config()["sampler"])
        return "sde-dpmsolver++" if sampler == "ula" else sampler


@dataclass
class Outcome:
    """What a strategy leaves behind.

    Attributes:
        images: uint8 (N, H, W, C).
        labels: int64 (N,).
        unet: the model they were drawn from, if there is one on the server.
        curves: loss curves (step, loss) by name as shown.
        notes: what a reader of the dataset must know: goes to its card, the report and the results.
        classifier: weights of a classifier that the silos trained; empty: they trained none.
        measures: what the strategy measured itself: columns of the results.
        tables: what its report shows besides.
        certified: of a replicated run, the head of its chain of certificates and who made it.
        owners: position of the silo whose own set an image belongs to, int64 (N,); None: all are one set.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    unet: Denoiser | None = None
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    owners: NDArray[np.int64] | None = None
    notes: tuple[str, ...] = ()
    classifier: Mapping[str, torch.Tensor] = field(default_factory=dict)
    measures: Mapping[str, Any] = field(default_factory=dict)
    tables: tuple[ReportTable, ...] = ()
    certified: Mapping[str, Any] = field(default_factory=dict)


class SynthesisStrategy(Strategy):
    """A way for silos to make one synthetic dataset.

    Hyper-parameters are the fields of ``Settings``, keyword arguments of the constructor, named like their config keys;
    their defaults are what ``"auto"`` resolves to. A round asks :meth:`questions` and hands the usable answers to
    :meth:`aggregate`; Flower's ``configure_train`` and ``aggregate_train`` do the same on a fresh object, so that a
    strategy can be driven without an exchange.

    Attributes:
        how: what the silos did, half a sentence for the report.
        Settings: class of its settings.
        settings: their values.
        quorum: silos whose answers a round needs unless ``min-replies`` says otherwise.
        rounds_can_be_added: whether a run that continues may have more rounds than it began with.
        num_rounds: rounds it runs.
        timeout: seconds to wait for the answers of the next round; None: ``reply-timeout``.
    """

    how: ClassVar[str]
    Settings: ClassVar[type[StrategySettings]] = StrategySettings
    settings: StrategySettings
    quorum: ClassVar[Quorum] = "all"
    rounds_can_be_added: ClassVar[bool] = True
    num_rounds: int
    timeout: float | None = None
    _slowest: float = 0.0
    _task: Task | None = None
    _census: Census | None = None
    _driven: DrivenRound | None = None

    def __init__(self, **settings: Any) -> None:
        """Check and keep the settings.

        Raises:
            UserError: a value out of range, values that do not go together, or a sampler that cannot be imported.
        """
        inspect.signature(type(self)).bind(**settings)  # a TypeError names what is no setting
        self.settings = parse(self.Settings, settings)
        if is_plugin(self.settings.sampler):
            load_plugin("sampler", self.settings.sampler)

    def __init_subclass__(cls) -> None:
        """Show the settings as the constructor's keyword arguments."""
        super().__init_subclass__()
        only = inspect.Parameter.KEYWORD_ONLY
        fields = cls.Settings.model_fields.items()
        shown = [inspect.Parameter(name, only, default=f.default, annotation=f.annotation) for name, f in fields]
        cls.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]

    @classmethod
    def defaults(cls, config: RunConfig) -> dict[str, Scalar]:
        """Values of the ``"auto"`` keys this strategy takes, by kebab-case key."""
        return cls.Settings.defaults(config.to_run_config())

    def check(self, config: RunConfig) -> None:
        """Refuse hyper-parameters that do not fit the rest of the configuration, before a silo is asked.

        Args:
            config: the run's, all defaults resolved.

        Raises:
            UserError: names key, value and what is allowed.
        """

    def begin(self, task: Task, exchange: Exchange) -> ArrayRecord:
        """Begin a run: keep the task, prepare the silos, and return the arrays the first round starts from."""
        self._task = task
        self.expect_other_work()
        return self.prepare(task, exchange)

    @abstractmethod
    def prepare(self, task: Task, exchange: Exchange) -> ArrayRecord:
        """Prepare the silos and return the arrays the first round starts from; the task is kept already."""

    @abstractmethod
    def questions(self, server_round: int, arrays: ArrayRecord) -> Sequence[Question[Any]]:
        """Return what a round asks the silos; nothing is sent here. 1 is the first round."""

    @abstractmethod
    def aggregate(
        self, server_round: int, answers: Iterator[tuple[int, Any]]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Turn the usable answers, each with its silo's index, into the arrays after the round and what was measured.

        Whatever order they come in makes no difference. None stands for a round without any usable answer.
        """

    @abstractmethod
    def finish(self, task: Task, arrays: ArrayRecord) -> Outcome:
        """Turn the arrays after the last round into the synthetic set."""

    def preview(self, task: Task, arrays: ArrayRecord, rows: torch.Tensor) -> NDArray[np.uint8] | None:
        """Return what some images of the set look like after a round, without any effect on the run.

        Args:
            task: the run's.
            arrays: as the round left them.
            rows: places of the images in the set, int64 (n,).

        Returns:
            uint8 (n, H, W, C); None if rounds have no images to show.
        """
        return None

    def check_answer(self, silo: int, answer: Any) -> None:
        """Refuse an answer for what only the strategy knows.

        Raises:
            ValueError: it cannot be used.
        """

    def replies_needed(self, asked: int) -> int:
        """Return how many of ``asked`` silos must give a usable answer in a round; 0 without a run."""
        return 0 if self._task is None else replies_needed(self._task.config.exchange.min_replies, asked, self.quorum)

    def unknown_census(self, node_ids: Iterable[int], arrays: ArrayRecord) -> Census:
        """Return the silos of a strategy that is driven without having begun."""
        return Census.unknown(node_ids)

    @property
    def census(self) -> Census:
        """The silos.

        Raises:
            RunError: neither :meth:`begin` nor :meth:`configure_train` was called.
        """
        if self._task is not None:
            return self._task.census
        if self._census is None:
            raise RunError(f"{type(self).__name__} knows no silos yet: call begin or configure_train first")
        return self._census

    def run_round(self, server_round: int, arrays: ArrayRecord, exchange: Exchange) -> tuple[ArrayRecord, MetricRecord]:
        """Ask the silos, and return the state after the round and what was measured.

        Raises:
            RunError: too few usable answers.
        """
        self._meet(exchange.get_node_ids, arrays)
        moved, metrics = self.aggregate(server_round, self._ask(exchange, self.questions(server_round, arrays)))
        if moved is None:
            raise RunError(f"round {server_round}: no usable answer")
        return moved, metrics or MetricRecord()

    def _ask(self, exchange: Exchange, questions: Sequence[Question[Any]]) -> Iterator[tuple[int, Any]]:
        needed = self.replies_needed(len({silo for silo, _ in questions}))
        asked = ask(exchange, questions, self.census, needed=needed, timeout=self.timeout, check=self.check_answer)
        return self.timed(asked)

    def timed(self, answers: Iterator[tuple[int, A]]) -> Iterator[tuple[int, A]]:
        """Yield the answers of a round, and note how long they took from the first one's being asked for."""
        begun = time.monotonic()
        for silo, answer in answers:
            self.note_duration(time.monotonic() - begun)
            yield silo, answer
            # It would stay in memory through the wait for the next.
            del answer

    def note_duration(self, seconds: float) -> None:
        """Note how long silos took in a round, by which ``round-timeout = "auto"`` has the next ones wait."""
        self._slowest = max(self._slowest, seconds)
        if self._task is not None:
            self.timeout = round_timeout(self._task.config.exchange, self._slowest)

    def expect_other_work(self) -> None:
        """Forget how long silos took: what they are asked next may take longer."""
        self._slowest = 0.0
        self.note_duration(0.0)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the messages of a round that somebody else sends.

        Args:
            server_round: 1 for the first.
            arrays: as the round before left them.
            config: not used: messages are typed.
            grid: says who the silos are, if :meth:`begin` was not called.
        """
        self._meet(grid.get_node_ids, arrays)
        self._driven = DrivenRound(self.questions(server_round, arrays), self.census, server_round)
        return self._driven

    def _meet(self, node_ids: Callable[[], Iterable[int]], arrays: ArrayRecord) -> None:
        if self._task is None:
            self._census = self.unknown_census(node_ids(), arrays)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate the replies to the messages of :meth:`configure_train`.

        Raises:
            RunError: there were no such messages, or too few usable answers.
        """
        if self._driven is None:
            raise RunError("aggregate_train before configure_train")
        needed = self.replies_needed(self._driven.num_silos)
        return self.aggregate(server_round, self._driven.answers(replies, needed, self.check_answer))

    def resume(self, task: Task, exchange: Exchange, state: dict[str, Any]) -> None:
        """Prepare the silos in place of :meth:`begin` when a run continues.

        Args:
            task: as for :meth:`begin`.
            exchange: the silos.
            state: what :meth:`state_dict` returned after the last finished round.
        """
        self.begin(task, exchange)
        self.load_state_dict(state)

    def on_disk(self, arrays: ArrayRecord) -> ArrayRecord:
        """Return the arrays that a run continues from, from where the strategy keeps them: by default in memory."""
        return arrays

    def state_dict(self) -> dict[str, Any]:
        """Return what rounds depend on besides the arrays: tensors, numbers, words, and lists and dicts of them."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned."""

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send nothing: the synthetic set is measured once, at the end."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return nothing: there is nothing to aggregate."""
        return None

    def summary(self) -> None:
        """Log name and hyper-parameters."""
        values = ", ".join(f"{key} = {value}" for key, value in self.settings.model_dump(by_alias=True).items())
        logger.info("strategy %s: %s", type(self).__name__, values)
