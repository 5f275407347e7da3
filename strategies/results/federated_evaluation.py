"""The synthetic set measured against the real images of all silos, which stay where they are."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch

from fedsynth.config import REAL_SILOS
from fedsynth.errors import RunError, UserError
from fedsynth.evaluation import FEATURE_SEED, train_domain_classifier
from fedsynth.evaluation.feature_statistics import FeatureStatistics, checked, frechet_distance_of_statistics
from fedsynth.evaluation.manifold import neighbour_radii
from fedsynth.evaluation.networks.random_features import RANDOM_FEATURES, trusted_extractor
from fedsynth.evaluation.silo_measures import MIN_HELD_OUT, NEIGHBOURS, HeldOutMeasures, hash_weights
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
from fedsynth.policy import SiloPolicy
from fedsynth.units import human_bytes
from strategies.base import Outcome, Task
from strategies.conversation.ask import ask
from strategies.conversation.exchange import Exchange

logger = logging.getLogger("fedsynth")

A = TypeVar("A", bound=Answer)
T = TypeVar("T")

FEATURES_OF = "random features, the same in every run"


@dataclass(frozen=True, eq=False)
class SiloEvaluation:
    """What the silos together say about the synthetic set.

    Attributes:
        names: all silos.
        synthetic: statistics of the synthetic features.
        real: statistics of the real features by silo; without the silos that were left out.
        held_out: measures on held-out images by silo; without the silos that were left out.
        real_silos: whether they are no simulated ones, which add no noise.
        shown_names: of all silos, as a reader knows them; empty: ``names``.
    """

    names: tuple[str, ...]
    synthetic: FeatureStatistics
    real: Mapping[str, FeatureStatistics] = field(default_factory=dict)
    held_out: Mapping[str, HeldOutMeasures] = field(default_factory=dict)
    real_silos: bool = False
    shown_names: tuple[str, ...] = ()

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
            rows["silo-recall"] = _columns(self._recall, "higher", n, FEATURES_OF)
        return rows

    def report_columns(self, name: str) -> dict[str, float]:
        """Return the columns of one silo in the report; none if it was left out."""
        if name not in self.held_out:
            return {}
        measures = self.held_out[name]
        return {"accuracy on its held-out images": measures.accuracy, "recall": measures.recall}

    @property
    def accuracy(self) -> float:
        """Share of all held-out images that the classifier of the synthetic set puts into their class."""
        return sum(measures.right for measures in self.held_out.values()) / self._num_held_out

    @property
    def notes(self) -> list[str]:
        """Limits of these numbers: how far they go, and which silos they leave out."""
        notes = []
        if any(part.noise for part in self.real.values()):
            noise = FeatureStatistics.merged(list(self.real.values())).noise
            notes.append(
                f"Noise of standard deviation {noise:.2g} in every mean of the silos' features makes their Fréchet"
                " distance larger: it compares with distances of equal noise only."
            )
        if self.held_out and self.real_silos:
            notes.append(
                "Each silo's counts of held-out images, and so its accuracy and recall, carry the noise that its policy"
                " asks for (evaluation-epsilon): differences of a few images mean nothing."
            )
        for what, given in (("Fréchet distance", self.real), ("accuracy and recall", self.held_out)):
            shown = zip(self.names, self.shown_names or self.names, strict=True)
            if absent := [said for name, said in shown if name not in given]:
                notes.append(f"Not in the silos' {what}: {', '.join(absent)}; the log says why.")
        return notes

    @property
    def _recall(self) -> float:
        return sum(measures.inside for measures in self.held_out.values()) / self._num_held_out

    @property
    def _num_held_out(self) -> int:
        return sum(measures.n for measures in self.held_out.values())

    def _measures(self, name: str) -> dict[str, Any]:
        row: dict[str, Any] = {}
        if name in self.real:
            row |= {"images": self.real[name].n, "noise": self.real[name].noise}
        if name in self.held_out:
            measures = self.held_out[name]
            row |= {"held-out-images": measures.n, "accuracy": measures.accuracy, "recall": measures.recall}
        return row


def _columns(value: float, better: str, n: int, measured_in: str) -> dict[str, Any]:
    return {"synthetic": value, "better": better, "N": n, "in": measured_in}


def evaluate_at_silos(exchange: Exchange, task: Task, outcome: Outcome) -> SiloEvaluation | None:
    """Have every silo measure the synthetic set against its own real images.

    Moments of all its images for one Fréchet distance, accuracy and recall of those it held out from training. A silo
    that fails, does not answer such questions or answers nonsense is left out, by name in the log.

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
    """The two questions about a synthetic set."""

    def __init__(self, exchange: Exchange, task: Task, outcome: Outcome) -> None:
        self._exchange = exchange
        self._task = task
        self._features = trusted_extractor(RANDOM_FEATURES).extract(outcome.images).features
        self._synthetic = FeatureStatistics.of(self._features)
        self._radii = neighbour_radii(self._features, NEIGHBOURS)
        # In a deployment the synthetic set is the only one that the server has.
        logger.info("training a classifier on the synthetic set")
        num_classes = len(task.spec.classes)
        classifier = train_domain_classifier(outcome.images, outcome.labels, num_classes, FEATURE_SEED)
        self._weights = classifier.state_dict()

    def run(self) -> SiloEvaluation:
        spec = self._task.spec
        about_statistics = StatisticsRequest(extractor=RANDOM_FEATURES, spec=spec)
        real = self._answers(about_statistics, self._statistics)
        # Never in half precision: nearest neighbours would change.
        about_held_out = EvaluateRequest(
            weights=transport.encode_tensors(self._weights),
            weights_hash=hash_weights(self._weights),
            extractor=RANDOM_FEATURES,
            centres=torch.from_numpy(self._features),
            radii=torch.from_numpy(self._radii),
            spec=spec,
        )
        held_out = self._answers(about_held_out, self._held_out)
        names = tuple(member.name for member in self._task.census)
        real_silos = self._task.config.data.dataset == REAL_SILOS
        return SiloEvaluation(names, self._synthetic, real, held_out, real_silos, self._task.shown_names)

    def _answers(self, request: Request[A], read: Callable[[A], T]) -> dict[str, T]:
        """Ask every silo whose policy allows it, and return what ``read`` makes of the usable answers, by silo."""
        policies, kind = self._task.policies, request.kind.removeprefix("query.")
        census, found = self._task.census, dict[int, T]()

        def check(silo: int, answer: A) -> None:
            found[silo] = read(answer)

        asked = [k for k, member in enumerate(census) if _allows(policies.get(member.name), kind)]
        for _ in ask(self._exchange, [(k, request) for k in asked], census, needed=0, check=check):
            pass
        return {census.members[k].name: found[k] for k in sorted(found)}

    def _statistics(self, answer: StatisticsAnswer) -> FeatureStatistics:
        self._check_number(answer.num_examples)
        mean, products = answer.mean.numpy(), answer.products.numpy()
        return checked(answer.num_examples, mean, products, self._features.shape[1], answer.noise)

    def _held_out(self, answer: EvaluateAnswer) -> HeldOutMeasures:
        self._check_number(answer.num_examples)
        if answer.num_examples < MIN_HELD_OUT:
            raise MessageError(f"{answer.num_examples} held-out images are too few to say anything about")
        return HeldOutMeasures(answer.right_inside, answer.right_outside, answer.wrong_inside, answer.wrong_outside)

    def _check_number(self, n: int) -> None:
        most = self._task.config.exchange.max_silo_images
        if n > most:
            raise MessageError(f"num-examples = {n}: must be a whole number from 0 to max-silo-images = {most}")


def _allows(policy: SiloPolicy | None, kind: str) -> bool:
    return policy is None or kind in policy.answers
