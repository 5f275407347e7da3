"""The synthetic set measured against the real images of all silos, which stay where they are."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch
from flwr.app import ArrayRecord, Message, MetricRecord

from fedsynth.errors import RunError, UserError
from fedsynth.evaluation import FEATURE_SEED, DomainClassifier, extract_features, train_domain_classifier
from fedsynth.evaluation.feature_statistics import FeatureStatistics, checked, frechet_distance_of_statistics
from fedsynth.evaluation.silo_measures import MIN_HELD_OUT, HeldOutMeasures, hash_weights
from fedsynth.messages import wire
from fedsynth.units import human_bytes
from strategies.base import Outcome, Task
from strategies.conversation.census import Census
from strategies.conversation.exchange import ExchangeGrid
from strategies.conversation.replies import claimed_name, sound

logger = logging.getLogger("fedsynth")

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


def evaluate_at_silos(grid: ExchangeGrid, task: Task, outcome: Outcome) -> SiloEvaluation | None:
    """Have every silo measure the synthetic set against its own real images.

    Statistics of all its images for one Fréchet distance, accuracy and coverage of those it held out from training. A
    silo that fails, has too few images or answers nonsense is left out, by name in the log.

    Returns:
        None if every silo has a set of its own, or the measurement failed: the log says why.
    """
    if outcome.owners is not None:
        logger.info("no measurement at the silos: each has a synthetic set of its own")
        return None
    before = replace(grid.traffic)
    try:
        done = _Measurement(grid, task, outcome).run()
    except (UserError, RunError) as error:
        # The dataset is finished; nothing at the silos is worth losing it.
        logger.warning("measurement at the silos given up: %s", error)
        return None
    down, up = grid.traffic.down - before.down, grid.traffic.up - before.up
    logger.info("measured at the silos: %s to them and %s back, not in the costs", human_bytes(down), human_bytes(up))
    return done


class _Measurement:
    """One classifier of the synthetic set and the two questions about it."""

    def __init__(self, grid: ExchangeGrid, task: Task, outcome: Outcome) -> None:
        self._grid, self._task, self._outcome = grid, task, outcome
        # In a deployment the synthetic set is the only one that the server has.
        logger.info("training a classifier on the synthetic set")
        classifier = self._train()
        self._features = extract_features(classifier, outcome.images)
        self._shift = self._features.mean(axis=0, dtype=np.float64)
        self._synthetic = FeatureStatistics.of(self._features, self._shift)
        self._weights = classifier.state_dict()
        self._hash = hash_weights(self._weights)

    def run(self) -> SiloEvaluation:
        # Never in half precision: sums of products would overflow, and nearest neighbours change.
        shift = wire.encode_tensors({wire.SHIFT: torch.from_numpy(self._shift)})
        statistics = self._requests(wire.STATISTICS, shift, wire.encode_tensors(self._weights))
        real = self._ask(statistics, self._read_statistics)
        features = wire.encode_tensors({wire.FEATURES: torch.from_numpy(self._features)})
        held_out = self._ask(self._requests(wire.EVALUATE, features), self._read_held_out)
        names = tuple(member.name for member in self._task.census)
        return SiloEvaluation(names, self._synthetic, real, held_out)

    def _train(self) -> DomainClassifier:
        images, labels = self._outcome.images, self._outcome.labels
        return train_domain_classifier(images, labels, len(self._task.spec.classes), FEATURE_SEED)

    def _requests(self, kind: str, arrays: ArrayRecord, weights: ArrayRecord | None = None) -> list[Message]:
        config = {
            **wire.spec_to_config(self._task.spec),
            "weights-hash": self._hash,
            "min-statistics-samples": self._task.config.evaluation.min_statistics_samples,
        }
        nodes = [member.node_id for member in self._task.census]
        messages = [wire.request(node, kind, config, arrays, self._grid.timeout) for node in nodes]
        if weights is not None:
            for message in messages:
                message.content[wire.WEIGHTS] = weights
        return messages

    def _ask(self, requests: list[Message], read: Callable[[Message], T]) -> dict[str, T]:
        """Gather what ``read`` makes of the sound answers, in the order of the census."""
        return gather(self._grid.send_and_receive(requests), self._task.census, read)

    def _read_statistics(self, reply: Message) -> FeatureStatistics:
        fewest = self._task.config.evaluation.min_statistics_samples
        n = self._num_images(reply, fewest, "min-statistics-samples")
        arrays = wire.array_record(reply, wire.ARRAYS)
        if set(arrays) != {wire.TOTAL, wire.PRODUCTS}:
            raise ValueError(f"arrays {sorted(arrays)}: must be '{wire.PRODUCTS}' and '{wire.TOTAL}'")
        total, products = (wire.decode(arrays[name]).numpy() for name in (wire.TOTAL, wire.PRODUCTS))
        return checked(n, total, products, len(self._shift), fewest, self._shift)

    def _read_held_out(self, reply: Message) -> HeldOutMeasures:
        n, metrics = self._num_images(reply, MIN_HELD_OUT, "least number to hold out"), wire.metrics(reply)
        counts, correct = (_whole_numbers(metrics, key) for key in ("label-counts", "label-correct"))
        measures = HeldOutMeasures(counts, correct, wire.number(metrics, "coverage"))
        measures.check(len(self._task.spec.classes), n)
        return measures

    def _num_images(self, reply: Message, fewest: int, bound: str) -> int:
        """Number of images behind an answer; refuses too few, too many, and those seen through another classifier."""
        if wire.config(reply).get("weights-hash") != self._hash:
            raise ValueError("weights-hash: measured with another classifier than the one sent")
        n, most = wire.metrics(reply).get("num-examples"), self._task.config.exchange.max_silo_images
        if not isinstance(n, int) or not 0 <= n <= most:
            raise ValueError(f"num-examples = {n}: must be a whole number from 0 to max-silo-images = {most}")
        if n < fewest:
            raise ValueError(f"{n} images are too few, {bound} = {fewest}")
        return n


def gather(replies: Iterable[Message], census: Census, read: Callable[[Message], T]) -> dict[str, T]:
    """Return what ``read`` makes of every answer by silo, in the order of the census whatever came first.

    Args:
        replies: answers as they come; those that cannot be used are left out by name.
        census: the silos of the run; a stranger's answer cannot be used.
        read: raises ValueError for an answer that cannot be used.
    """

    def read_known(reply: Message) -> tuple[int, T]:
        k = census.position(reply)
        if k is None:
            raise ValueError("no silo of this run")
        return k, read(reply)

    def known_name(reply: Message) -> str:
        k = census.position(reply)
        return claimed_name(reply) if k is None else census.members[k].name

    found = dict(sound(replies, 0, read_known, known_name))
    return {census.members[k].name: found[k] for k in sorted(found)}


def _whole_numbers(metrics: MetricRecord, key: str) -> tuple[int, ...]:
    values = metrics.get(key)
    if not isinstance(values, list) or not all(isinstance(value, int) for value in values):
        raise ValueError(f"{key} = {values!r}: must be a list of whole numbers")
    return tuple(int(value) for value in values)
