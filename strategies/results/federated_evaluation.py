"""The synthetic set measured against the real images of all silos, which stay where they are."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch

from fedsynth.errors import RunError, UserError
from fedsynth.evaluation import FEATURE_SEED, DomainClassifier, extract_features, train_domain_classifier
from fedsynth.evaluation.feature_statistics import FeatureStatistics, checked, frechet_distance_of_statistics
from fedsynth.evaluation.silo_measures import MIN_HELD_OUT, HeldOutMeasures, hash_weights
from fedsynth.messages import (
    Answer,
    EvaluateAnswer,
    EvaluateRequest,
    MessageError,
    Request,
    StatisticsAnswer,
    StatisticsRequest,
    transport,
)
from fedsynth.units import human_bytes
from strategies.base import Outcome, Task
from strategies.conversation.ask import ask
from strategies.conversation.exchange import Exchange

logger = logging.getLogger("fedsynth")

A = TypeVar("A", bound=Answer)
T = TypeVar("T")

FEATURES_OF = "features of a classifier of the synthetic set"
_CAVEAT = (
    "The silos measured with a classifier that was trained on this synthetic set. Their Fréchet distance and coverage"
    " cannot be compared with those of another set, and coverage is the higher the fewer real images a silo holds."
)


@dataclass(frozen=True, eq=False)
class SiloEvaluation:
    """What the silos together say about the synthetic set.

    Attributes:
        names: all silos.
        synthetic: statistics of the synthetic features.
        real: statistics of the real features by silo, around the same shift; without the silos that were left out.
        held_out: measures on held-out images by silo; without the silos that were left out.
    """

    names: tuple[str, ...]
    synthetic: FeatureStatistics
    real: Mapping[str, FeatureStatistics] = field(default_factory=dict)
    held_out: Mapping[str, HeldOutMeasures] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """Return the columns of ``results.json``: overall, accuracy also of the worst and best silo, and by silo."""
        row: dict[str, Any] = {}
        for measure, columns in self.table().items():
            row[measure] = columns["synthetic"]
            row |= {f"{measure}-{end}": columns[end] for end in ("lowest", "highest") if end in columns}
        return {**row, "silo-measures": {name: self._measures(name) for name in self.names}}

    def table(self) -> dict[str, dict[str, Any]]:
        """Lay out as measure -> columns, each number with its N and what it was measured in."""
        rows: dict[str, dict[str, Any]] = {}
        if self.real:
            real = FeatureStatistics.merged(list(self.real.values()))
            distance = frechet_distance_of_statistics(real, self.synthetic)
            rows["silo-frechet-distance"] = _columns(distance, "lower", real.n, FEATURES_OF)
        if self.held_out:
            n, accuracies = self._num_held_out, [measures.accuracy for measures in self.held_out.values()]
            rows["silo-accuracy"] = {
                **_columns(self.accuracy, "higher", n, "held-out images of the silos"),
                "lowest": min(accuracies),
                "highest": max(accuracies),
            }
            rows["silo-coverage"] = _columns(self._coverage, "higher", n, FEATURES_OF)
        return rows

    def report_columns(self, name: str) -> dict[str, float]:
        """Return the columns of one silo in the report; none if it was left out."""
        if name not in self.held_out:
            return {}
        measures = self.held_out[name]
        return {"accuracy on its held-out images": measures.accuracy, "coverage": measures.coverage}

    @property
    def accuracy(self) -> float:
        """Share of all held-out images that the classifier of the synthetic set puts into their class."""
        return sum(measures.accuracy * measures.n for measures in self.held_out.values()) / self._num_held_out

    @property
    def notes(self) -> list[str]:
        """Limits of these numbers: how far they go, and which silos they leave out."""
        notes = [_CAVEAT] if self.real or self.held_out else []
        for what, given in (("Fréchet distance", self.real), ("accuracy and coverage", self.held_out)):
            if absent := [name for name in self.names if name not in given]:
                notes.append(f"Not in the silos' {what}: {', '.join(absent)}; the log says why.")
        return notes

    @property
    def _coverage(self) -> float:
        return sum(measures.coverage * measures.n for measures in self.held_out.values()) / self._num_held_out

    @property
    def _num_held_out(self) -> int:
        return sum(measures.n for measures in self.held_out.values())

    def _measures(self, name: str) -> dict[str, Any]:
        row: dict[str, Any] = {"images": self.real[name].n} if name in self.real else {}
        if name in self.held_out:
            measures = self.held_out[name]
            row |= {"held-out-images": measures.n, "accuracy": measures.accuracy, "coverage": measures.coverage}
            row |= {"label-counts": measures.label_counts, "label-correct": measures.label_correct}
        return row


def _columns(value: float, better: str, n: int, measured_in: str) -> dict[str, Any]:
    return {"synthetic": value, "better": better, "N": n, "in": measured_in}


def evaluate_at_silos(exchange: Exchange, task: Task, outcome: Outcome) -> SiloEvaluation | None:
    """Have every silo measure the synthetic set against its own real images.

    Statistics of all its images for one Fréchet distance, accuracy and coverage of those it held out from training. A
    silo that fails, has too few images or answers nonsense is left out, by name in the log.

    Returns:
        None if every silo has a set of its own, or the measurement failed: the log says why.
    """
    if outcome.owners is not None:
        logger.info("no measurement at the silos: each has a synthetic set of its own")
        return None
    before = replace(exchange.traffic)
    try:
        done = _Measurement(exchange, task, outcome).run()
    except (UserError, RunError) as error:
        # The dataset is finished; nothing at the silos is worth losing it.
        logger.warning("measurement at the silos given up: %s", error)
        return None
    down = exchange.traffic.down - before.down
    up = exchange.traffic.up - before.up
    logger.info("measured at the silos: %s to them and %s back, not in the costs", human_bytes(down), human_bytes(up))
    return done


class _Measurement:
    """One classifier of the synthetic set and the two questions about it."""

    def __init__(self, exchange: Exchange, task: Task, outcome: Outcome) -> None:
        self._exchange = exchange
        self._task = task
        self._outcome = outcome
        # In a deployment the synthetic set is the only one that the server has.
        logger.info("training a classifier on the synthetic set")
        classifier = self._train()
        self._features = extract_features(classifier, outcome.images)
        self._shift = self._features.mean(axis=0, dtype=np.float64)
        self._synthetic = FeatureStatistics.of(self._features, self._shift)
        self._weights = classifier.state_dict()
        self._hash = hash_weights(self._weights)

    def run(self) -> SiloEvaluation:
        census = self._task.census
        names = tuple(member.name for member in census)
        # Never in half precision: sums of products would overflow, and nearest neighbours change.
        about_statistics = StatisticsRequest(
            weights=transport.encode_tensors(self._weights),
            weights_hash=self._hash,
            shift=torch.from_numpy(self._shift),
            spec=self._task.spec,
            min_statistics_samples=self._task.config.evaluation.min_statistics_samples,
        )
        real = self._answers(about_statistics, self._statistics)
        about_held_out = EvaluateRequest(
            weights_hash=self._hash, features=torch.from_numpy(self._features), spec=self._task.spec
        )
        held_out = self._answers(about_held_out, self._held_out)
        return SiloEvaluation(names, self._synthetic, real, held_out)

    def _train(self) -> DomainClassifier:
        images, labels = self._outcome.images, self._outcome.labels
        return train_domain_classifier(images, labels, len(self._task.spec.classes), FEATURE_SEED)

    def _answers(self, request: Request[A], read: Callable[[A], T]) -> dict[str, T]:
        """Ask every silo, and return what ``read`` makes of the usable answers by silo, in the order of the census."""
        census, found = self._task.census, dict[int, T]()

        def check(silo: int, answer: A) -> None:
            found[silo] = read(answer)

        questions = [(k, request) for k in range(len(census))]
        for _ in ask(self._exchange, questions, census, needed=0, check=check):
            pass
        return {census.members[k].name: found[k] for k in sorted(found)}

    def _statistics(self, answer: StatisticsAnswer) -> FeatureStatistics:
        self._check_number(answer.num_examples)
        assert answer.total is not None  # the reader asks for both
        assert answer.products is not None
        fewest = self._task.config.evaluation.min_statistics_samples
        total, products = answer.total.numpy(), answer.products.numpy()
        return checked(answer.num_examples, total, products, len(self._shift), fewest, self._shift)

    def _held_out(self, answer: EvaluateAnswer) -> HeldOutMeasures:
        n = answer.num_examples
        self._check_number(n)
        if n < MIN_HELD_OUT or answer.coverage is None:
            raise MessageError(f"{n} images are too few, least number to hold out = {MIN_HELD_OUT}")
        measures = HeldOutMeasures(answer.label_counts, answer.label_correct, answer.coverage)
        measures.check(len(self._task.spec.classes), n)
        return measures

    def _check_number(self, n: int) -> None:
        most = self._task.config.exchange.max_silo_images
        if n > most:
            raise MessageError(f"num-examples = {n}: must be a whole number from 0 to max-silo-images = {most}")
