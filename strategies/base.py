"""What every strategy of fedsynth can do."""

from __future__ import annotations

import inspect
import logging
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import UNet2DModel
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from fedsynth.config import RunConfig, Scalar, StrategySettings
from fedsynth.config.keys import parse
from fedsynth.data import Federation, LabelledImages
from fedsynth.messages import wire
from fedsynth.plugins import is_plugin, load_plugin
from fedsynth.spec import ImageSpec
from strategies.conversation.census import Census

logger = logging.getLogger("fedsynth")


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
    """

    config: RunConfig
    spec: ImageSpec
    census: Census
    labels: torch.Tensor
    federation: Federation | None = None
    reference: tuple[LabelledImages, LabelledImages] | None = None

    @property
    def real_folds(self) -> tuple[LabelledImages, LabelledImages] | None:
        """Train and test fold of the real images that the server may look at; None if it has none."""
        return (self.federation.train, self.federation.test) if self.federation else self.reference

    @property
    def sampler(self) -> str:
        """How one model is sampled; Langevin moves are for composed noise only."""
        sampler = self.config.settings.sampler
        return "sde-dpmsolver++" if sampler == "ula" else sampler

    @property
    def min_replies(self) -> int:
        """Usable answers a round needs."""
        asked = self.config.exchange.min_replies
        return len(self.census) if asked == "auto" else asked


@dataclass
class Outcome:
    """What a strategy leaves behind.

    Attributes:
        images: uint8 (N, H, W, C).
        labels: int64 (N,).
        unet: the model they were drawn from, if there is one on the server.
        curves: loss curves (step, loss) by name.
        notes: what a reader of the dataset must know: goes to its card, the report and the results.
        owners: position of the silo whose own set an image belongs to, int64 (N,); None: all are one set.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    unet: UNet2DModel | None = None
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    owners: NDArray[np.int64] | None = None
    notes: tuple[str, ...] = ()


class SynthesisStrategy(Strategy):
    """A way for silos to make one synthetic dataset.

    Hyper-parameters are the fields of ``Settings``, keyword arguments of the constructor, named like their config keys;
    their defaults are what ``"auto"`` resolves to. ``configure_train`` and ``aggregate_train`` work on a fresh object,
    so that a strategy can be driven without a network.

    Attributes:
        how: what the silos did, half a sentence for the report.
        Settings: class of its settings.
        settings: their values.
        num_rounds: rounds it runs.
        patience: seconds to wait for the answers of a round; None: ``reply-timeout``.
    """

    how: ClassVar[str]
    Settings: ClassVar[type[StrategySettings]] = StrategySettings
    settings: StrategySettings
    num_rounds: int
    patience: float | None = None

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

    @abstractmethod
    def begin(self, task: Task, grid: Grid) -> ArrayRecord:
        """Prepare the silos and return the arrays the first round starts from."""

    @abstractmethod
    def finish(self, task: Task, arrays: ArrayRecord) -> Outcome:
        """Turn the arrays after the last round into the synthetic set."""

    def resume(self, task: Task, grid: Grid, state: dict[str, Any]) -> None:
        """Prepare the silos in place of :meth:`begin` when a run continues.

        Args:
            task: as for :meth:`begin`.
            grid: the silos.
            state: what :meth:`state_dict` returned after the last finished round.
        """
        self.begin(task, grid)
        self.load_state_dict(state)

    def state_dict(self) -> dict[str, Any]:
        """Return what rounds depend on besides the arrays: tensors, numbers, words, and lists and dicts of them."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned."""

    def train_config(self, task: Task) -> ConfigRecord:
        """Return what every round's messages carry besides arrays."""
        return ConfigRecord(wire.spec_to_config(task.spec))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send nothing: the synthetic set is measured once, at the end."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Nothing to aggregate."""
        return None

    def summary(self) -> None:
        """Log name and hyper-parameters."""
        values = ", ".join(f"{key} = {value}" for key, value in self.settings.model_dump(by_alias=True).items())
        logger.info("strategy %s: %s", type(self).__name__, values)
