"""``ddsa``: a classifier and a dataset from few labels (DDSA-FSSL, arXiv 2501.02219).

Phases are rounds, one after the other: the silos train a classifier on their labels; what it confuses on labelled
images that it never saw says which of its predictions become pseudo-labels; on both kinds of images they train a
class-conditional diffusion model, or models of their own; each silo gets images of them that its labels lack; and they
train the classifier anew on labels and synthesised images. Images and lists of them never leave a silo.

What the paper leaves open, and is our choice, stands where it is decided.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any, ClassVar
from uuid import uuid4

import torch
from flwr.app import ArrayRecord, MetricRecord

from fedsynth.averaging.participants import num_participants, participants
from fedsynth.config import RunConfig
from fedsynth.config.methods import AveragingSettings, DDSASettings
from fedsynth.errors import RunError
from fedsynth.few_labels.quota import QUOTAS
from fedsynth.messages import (
    ConfusionRequest,
    MessageError,
    SelectAnswer,
    SelectRequest,
    SynthesiseRequest,
    TrainAnswer,
    TrainRequest,
    transport,
)
from fedsynth.messages.confusion import MAX_CELLS
from fedsynth.messages.train import CLASSIFIER
from fedsynth.spec import ImageSpec
from strategies.averaging.aggregation import check_model, shapes
from strategies.averaging.base import AveragingStrategy
from strategies.averaging.fedavg import FedAvg
from strategies.averaging.fedprox import FedProx
from strategies.averaging.robust import FedMedian, FedTrimmedAvg
from strategies.averaging.server_optimizers import FedAdagrad, FedAdam, FedAvgM, FedYogi
from strategies.base import Outcome, SynthesisStrategy, Task
from strategies.conversation.ask import Question, Quorum
from strategies.conversation.exchange import Exchange
from strategies.few_labels import classifier
from strategies.few_labels.findings import Findings
from strategies.few_labels.labelling import note_answers, set_thresholds
from strategies.few_labels.own_models import DATASET, OwnModels, hand_out
from strategies.few_labels.schedule import FINAL, Phase, phases_of, place
from strategies.global_model import draw_from_model

logger = logging.getLogger("fedsynth")

Tensors = dict[str, torch.Tensor]
RULES: dict[str, type[AveragingStrategy]] = {
    "fedmedian": FedMedian,
    "fedtrimmedavg": FedTrimmedAvg,
    "fedavgm": FedAvgM,
    "fedadagrad": FedAdagrad,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
    "fedprox": FedProx,
}
"""Value of ``diffusion-strategy`` -> how the diffusion model is averaged, beside FedAvg."""


class DDSA(SynthesisStrategy):
    """Classifier, pseudo-labels, diffusion model, synthesis of what a silo lacks, classifier anew.

    Both models are averaged as FedAvg does, silos weighing by the images that they train on, or the diffusion model as
    ``diffusion-strategy`` says; with dfd or pooled silos keep diffusion models of their own, see
    :class:`~strategies.few_labels.own_models.OwnModels`. A silo without labels trains no classifier, but for those that
    learn from pseudo-labels or from every true label, and counts no confusions; it is asked for pseudo-labels and, if
    it has some, trains the diffusion model. A class that nobody labels is named, gets no pseudo-labels, and is left out
    of the dataset.
    """

    how = (
        "the silos trained a classifier on few labels, pseudo-labelled what it is sure of, trained diffusion on both,"
        " synthesised what their labels lack, and trained the classifier anew"
    )
    quorum: ClassVar[Quorum] = "half"
    # Phases follow each other: one more round would be of the last.
    rounds_can_be_added: ClassVar[bool] = False
    Settings = DDSASettings
    settings: DDSASettings

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._phases = phases_of(self.settings)
        self.num_rounds = sum(phase.rounds for phase in self._phases)
        averaging = {name: getattr(self.settings, name) for name in AveragingSettings.model_fields}
        self._diffusion: AveragingStrategy = RULES.get(self.settings.diffusion_strategy, FedAvg)(**averaging)
        self._first_unet = ArrayRecord()
        self._config = RunConfig()
        self._spec = ImageSpec(1, 8, ("unknown",))
        self._sent = ArrayRecord()
        self._found = Findings()
        self._unet: Tensors = {}
        self._own: OwnModels | None = None
        # Of a phase that continues, until the silos' models are found again.
        self._own_state: dict[str, Any] = {}
        self._drawn: Tensors = {}
        self._notes: tuple[str, ...] = ()
        self._classifier: Tensors = {}
        # By it silos know what they have kept in this run; random, but nothing computed depends on it.
        self._run_token = uuid4().hex

    def prepare(self, task: Task, exchange: Exchange) -> ArrayRecord:
        """Return what the first phase starts from.

        Raises:
            RunError: no silo has a label, or confusion matrices would be too large.
        """
        self._config, self._spec = task.config, task.spec
        if not self.settings.own_models:
            self._first_unet = self._diffusion.begin(task, exchange)
        counts = task.census.label_counts
        if not int(counts.sum()):
            remedy = "raise labelled-fraction" if task.federation else "put labelled images into class folders"
            raise RunError(f"no silo has a label: {remedy}")
        if (
            "confusion" in self.settings.asks
            and (cells := counts.shape[1] ** 2 * self.settings.pseudo_bins) > MAX_CELLS
        ):
            raise RunError(
                f"{counts.shape[1]} classes and pseudo-bins = {self.settings.pseudo_bins}: {cells:,} cells of a"
                f" confusion matrix, must be <= {MAX_CELLS:,}: lower pseudo-bins"
            )
        for name, number in zip(task.shown_names, counts.sum(1).tolist(), strict=True):
            if not number:
                logger.warning("%s has no labels: it trains no classifier, and synthesises nothing", name)
        for name, number in zip(task.spec.classes, counts.sum(0).tolist(), strict=True):
            if not number:
                logger.warning("class '%s' is labelled by nobody: it is left out", name)
        return self._start_of(self._phases[0], ArrayRecord())

    def resume(self, task: Task, exchange: Exchange, state: dict[str, Any]) -> None:
        """Continue, with the silos' own models where the phases have come to them."""
        super().resume(task, exchange, state)
        if not self._own_state:
            return
        self._own = OwnModels(self.settings, task, self._run_token, self._found.kept)
        if self._drawn:
            self._own.meet(exchange)
        else:
            self._own.begin(exchange)
            self._own.strategy.load_state_dict(self._own_state)

    def run_round(self, server_round: int, arrays: ArrayRecord, exchange: Exchange) -> tuple[ArrayRecord, MetricRecord]:
        """Ask the silos, as the round's phase says; where they keep their models, as the strategy that draws from them.

        Raises:
            RunError: too few usable answers.
        """
        phase, number = self._at(server_round)
        if phase.kind != "diffusion" or not self.settings.own_models:
            return super().run_round(server_round, arrays, exchange)
        if number == 1:
            self._say(phase, server_round)
            self._own = OwnModels(self.settings, self._begun(), self._run_token, self._found.kept)
            arrays = self._own.begin(exchange)
        assert self._own is not None
        moved, metrics = self._own.strategy.run_round(number, arrays, exchange)
        # Classes that wait for their holders make more rounds of it.
        self._give_diffusion(self._own.strategy.num_rounds)
        phase, _ = self._at(server_round)
        return (self._after(phase, moved, metrics) if number == phase.rounds else moved), metrics

    def questions(self, server_round: int, arrays: ArrayRecord) -> list[Question[Any]]:
        """Return what a round asks, as its phase says; where silos keep their models, :meth:`run_round` asks."""
        phase, number = self._at(server_round)
        if number == 1:
            self._say(phase, server_round)
        self._sent = arrays
        if self.settings.own_models and phase.kind == "synthesis":
            return [*hand_out(self._begun(), arrays, self._run_token)]
        weights = self._on_the_wire(arrays)
        match phase.kind:
            case "confusion":
                request = ConfusionRequest(weights=weights, bins=self.settings.pseudo_bins, spec=self._spec)
                return [(k, request) for k in self._labelling]
            case "selection":
                thresholds = torch.tensor(self._found.thresholds, dtype=torch.float64)
                select = SelectRequest(
                    weights=weights, thresholds=thresholds, spec=self._spec, run_token=self._run_token
                )
                return [(k, select) for k in range(len(self.census))]
            case "synthesis":
                return self._synthesis(weights)
            case "diffusion":
                asked = self._diffusion.questions(number, arrays)
                return [
                    (k, replace(request, images=images, run_token=self._run_token))
                    for k, request in asked
                    if isinstance(request, TrainRequest) and (images := self._diffusion_images(k))
                ]
            case "classifier":
                return self._training(phase, number, weights)

    def check_answer(self, silo: int, answer: Any) -> None:
        """Refuse a weight that cannot be had for the asking, a model that does not fit, and more images than can be."""
        most = self._config.exchange.max_silo_images
        if isinstance(answer, TrainAnswer):
            if not 1 <= answer.num_examples <= most:
                raise MessageError(
                    f"num-examples = {answer.num_examples}: must be a whole number from 1 to max-silo-images = {most}"
                )
            check_model(answer.arrays, shapes(self._sent))
        if isinstance(answer, SelectAnswer) and sum(answer.predicted) > most:
            raise MessageError(f"{sum(answer.predicted)} unlabelled images: must be <= max-silo-images = {most}")

    def aggregate(
        self, server_round: int, answers: Iterator[tuple[int, Any]]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combine the answers as the round's phase says; after its last round, begin the next one.

        Raises:
            RunError: a combined model is not finite or absurd.
        """
        phase, number = self._at(server_round)
        if phase.kind == "diffusion":
            arrays, metrics = self._diffusion.aggregate(number, answers)
        elif phase.kind == "classifier":
            arrays, metrics = classifier.average(server_round, answers, self._sent, self._names)
        else:
            arrays, metrics = self._sent, self._counted(phase, answers)
        if arrays is None or metrics is None:
            return None, None
        return (self._after(phase, arrays, metrics) if number == phase.rounds else arrays), metrics

    def finish(self, task: Task, arrays: ArrayRecord) -> Outcome:
        """Sample the diffusion model, if the silos have not drawn the images; the classifier comes with them."""
        held = task.census.label_counts.sum(0) > 0
        lost = [name for name, known in zip(task.spec.classes, held.tolist(), strict=True) if not known]
        if lost:
            task = replace(task, labels=task.labels[held[task.labels]])
        if self.settings.own_models:
            curves = {name: member.curve for name, member in zip(task.shown_names, task.census, strict=True)}
            images, labels = (self._drawn[name].numpy() for name in ("images", "labels"))
            outcome = Outcome(images, labels, curves=curves, notes=self._notes)
        else:
            outcome = draw_from_model(task, self._unet)
            outcome.curves["mean over silos, by round of the diffusion model"] = self._diffusion.losses
        notes = (f"no images of class {', '.join(lost)}: nobody labels it",) if lost else ()
        return replace(
            outcome,
            notes=(*outcome.notes, *notes),
            classifier=self._classifier,
            tables=self._found.tables(task, self.settings.own_models),
            measures=self._found.measures(),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the models so far, what was found, and by which name silos know the run."""
        return {
            "run-token": self._run_token,
            **self._diffusion_state(),
            "classifier": self._classifier,
            "found": asdict(self._found),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self._run_token = state["run-token"]
        self._classifier = state["classifier"]
        self._found = Findings(**state["found"])
        if self.settings.own_models:
            self._own_state, self._drawn, self._notes = state["own"], state["drawn"], tuple(state["notes"])
            self._give_diffusion(state["diffusion-rounds"])
        else:
            self._diffusion.load_state_dict(state["diffusion"])
            self._unet = state["unet"]

    def _diffusion_state(self) -> dict[str, Any]:
        if not self.settings.own_models:
            return {"diffusion": self._diffusion.state_dict(), "unet": self._unet}
        own = {} if self._own is None else {"begun": True, **self._own.strategy.state_dict()}
        rounds = next(phase.rounds for phase in self._phases if phase.kind == "diffusion")
        return {"own": own, "drawn": self._drawn, "notes": list(self._notes), "diffusion-rounds": rounds}

    def _give_diffusion(self, rounds: int) -> None:
        self._phases = tuple(
            replace(phase, rounds=rounds) if phase.kind == "diffusion" else phase for phase in self._phases
        )
        self.num_rounds = sum(phase.rounds for phase in self._phases)

    def _begun(self) -> Task:
        if self._task is None:
            raise RunError("silos that keep their models have to be met: call begin first")
        return self._task

    def _say(self, phase: Phase, server_round: int) -> None:
        self.expect_other_work()
        logger.info("phase '%s': %d rounds from round %d on", phase.name, phase.rounds, server_round)

    @property
    def _names(self) -> list[str]:
        return [member.name for member in self.census.members]

    @property
    def _labelling(self) -> list[int]:
        return [k for k, member in enumerate(self.census) if member.num_examples]

    def _at(self, server_round: int) -> tuple[Phase, int]:
        index, number = place(self._phases, server_round)
        return self._phases[index], number

    def _on_the_wire(self, arrays: ArrayRecord) -> ArrayRecord:
        dtype = self._config.exchange.wire_dtype
        return arrays if dtype == "float32" else transport.encode_tensors(transport.decode_tensors(arrays), dtype)

    def _training(self, phase: Phase, number: int, weights: ArrayRecord) -> list[Question[Any]]:
        total = self.settings.classifier_steps
        first = total * (number - 1) // phase.rounds
        steps = total * number // phase.rounds - first
        able, settings = self._able(phase), self.settings
        count = num_participants(len(able), settings.fraction_train, settings.min_train_nodes)
        chosen = [able[drawn] for drawn in participants(self._config.run.seed, number, len(able), count)]
        return [
            (
                silo,
                TrainRequest(
                    arrays=weights,
                    spec=self._spec,
                    server_round=number,
                    steps=steps,
                    first_step=first,
                    run_token=self._run_token,
                    model=CLASSIFIER,
                    images=self._classifier_images(phase, silo),
                ),
            )
            for silo in chosen
        ]

    def _able(self, phase: Phase) -> list[int]:
        """Return the silos that have images for a classifier."""
        able = set(self._labelling)
        if phase.name == "pseudo":
            able |= {k for k, kept in enumerate(self._found.kept) if sum(kept)}
        if phase.name == "all" and self._task is not None and self._task.federation is not None:
            # The simulation alone has it, and knows who holds images.
            able |= {k for k, part in enumerate(self._task.federation.parts) if len(part)}
        return sorted(able)

    def _classifier_images(self, phase: Phase, silo: int) -> str:
        """Return what a silo is to train on: what it did not make, it does not train on."""
        made = {"pseudo": self._found.kept, FINAL: self._found.made}.get(phase.name)
        return "labelled" if made is not None and not (made and sum(made[silo])) else phase.name

    def _diffusion_images(self, silo: int) -> str:
        """Return what a silo is to train the diffusion model on; empty: it has nothing."""
        if self._found.kept and sum(self._found.kept[silo]):
            return "pseudo"
        return "labelled" if self.census.members[silo].num_examples else ""

    def _synthesis(self, weights: ArrayRecord) -> list[Question[Any]]:
        rule = QUOTAS[self.settings.synthetic_quota]
        quotas = rule(self.census.label_counts, self.settings.synthetic_multiplier).tolist()
        sampler = self._task.sampler if self._task else str(self.settings.sampler)
        return [
            (
                k,
                SynthesiseRequest(
                    weights=weights, quota=tuple(quota), sampler=sampler, spec=self._spec, run_token=self._run_token
                ),
            )
            for k, quota in enumerate(quotas)
            if any(quota)
        ]

    def _counted(self, phase: Phase, answers: Iterator[tuple[int, Any]]) -> MetricRecord:
        """Note what the silos counted in a phase that changes no weights; confusions decide on pseudo-labels."""
        classes, bins = self._spec.classes, self.settings.pseudo_bins
        counted = note_answers(self._found, phase.kind, answers, self._names, len(classes), bins)
        if phase.kind == "confusion":
            set_thresholds(self._found, self.settings, classes, self.census.label_counts, counted.matrix)
        return MetricRecord({"silos": counted.silos, "client-seconds": counted.seconds})

    def _after(self, phase: Phase, arrays: ArrayRecord, metrics: MetricRecord) -> ArrayRecord:
        """Close a phase, and return what the next one starts from."""
        if phase.kind == "classifier":
            self._measure(phase, transport.decode_tensors(arrays), metrics)
        if phase.kind == "diffusion" and self._own is not None:
            arrays = self._take_the_dataset(self._own, arrays)
        elif phase.kind == "diffusion":
            self._unet = self._diffusion.averaged or transport.decode_tensors(arrays)
        if phase.name == FINAL:
            self._classifier = transport.decode_tensors(arrays)
        following = self._phases[self._phases.index(phase) + 1 :]
        return self._start_of(following[0], arrays) if following else arrays

    def _take_the_dataset(self, own: OwnModels, arrays: ArrayRecord) -> ArrayRecord:
        """Keep the images of the dataset, and return those that silos lack."""
        drawn = transport.decode_tensors(own.finish(arrays))
        of_dataset = drawn["silos"] == DATASET
        self._drawn = {name: tensor[of_dataset] for name, tensor in drawn.items()}
        self._notes = own.notes
        return transport.encode_tensors({name: tensor[~of_dataset] for name, tensor in drawn.items()})

    def _start_of(self, phase: Phase, arrays: ArrayRecord) -> ArrayRecord:
        match phase.kind:
            case "classifier":
                return classifier.first_weights(self._config.run.seed, self._spec)
            case "selection" if not self._found.thresholds:
                set_thresholds(self._found, self.settings, self._spec.classes, self.census.label_counts)
            case "diffusion":
                return self._first_unet
            case "synthesis" if not self.settings.own_models:
                return transport.encode_tensors(self._unet)
        return arrays

    def _measure(self, phase: Phase, weights: Tensors, metrics: MetricRecord) -> None:
        """Note how many test images a classifier knows, where the server has some."""
        folds = self._task.real_folds if self._task else None
        if folds is None:
            return
        accuracy = classifier.right_answers(weights, self._spec, folds[1])
        self._found.accuracy[phase.name] = metrics["accuracy"] = accuracy
        logger.info("classifier '%s': %.1f %% of the test images", phase.name, 100 * accuracy)
