"""What a run from few labels found on its way, and how its report says it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from fedsynth.output import ReportTable
from strategies.base import Task

Counts = list[list[int]]

TRAINED_ON = {
    "first": "labels, but for those that count confusions",
    "labelled": "labels",
    "pseudo": "labels and pseudo-labels",
    "fixmatch": "labels, and unlabelled images with FixMatch's loss",
    "synthetic": "labels and synthesised images",
    "all": "every true label",
}


@dataclass
class Findings:
    """Numbers of a run from few labels; counts by silo hold a row for each, 0 for those that did not answer.

    Attributes:
        accuracy: share of the test images that a classifier knows, by phase; empty where the server has none.
        thresholds: least confidence of a pseudo-label of each class.
        reached: whether the class's pseudo-labels are as precise as was asked.
        predicted, kept, correct: unlabelled images by silo and predicted class: all, the pseudo-labelled, and those of
            them whose class it is, which a simulation alone knows; otherwise empty.
        made: images that were synthesised for each silo, by class.
    """

    accuracy: dict[str, float] = field(default_factory=dict)
    thresholds: list[float] = field(default_factory=list)
    reached: list[bool] = field(default_factory=list)
    predicted: Counts = field(default_factory=list)
    kept: Counts = field(default_factory=list)
    correct: Counts = field(default_factory=list)
    made: Counts = field(default_factory=list)

    def measures(self) -> dict[str, Any]:
        """Return columns of ``results.json``."""
        kept, predicted, correct = (_total(counts) for counts in (self.kept, self.predicted, self.correct))
        row: dict[str, Any] = {f"classifier-accuracy-{name}": value for name, value in self.accuracy.items()}
        if predicted:
            row["pseudo-label-share"] = kept / predicted
        if kept and self.correct:
            row["pseudo-label-precision"] = correct / kept
        return {**row, "synthesised-images": _total(self.made)}

    def tables(self, task: Task, own_models: bool = False) -> tuple[ReportTable, ...]:
        """Return the tables of the report: accuracy, pseudo-labels by class, and what was synthesised where.

        Args:
            task: the run's.
            own_models: whether images came from models that silos kept.
        """
        tables = []
        if self.accuracy:
            rows = {
                TRAINED_ON[name]: {"right answers on real test images": value} for name, value in self.accuracy.items()
            }
            said = "One small convolutional network, trained by all silos together with as many rounds and steps each."
            tables.append(ReportTable("What the classifiers learnt", said, rows))
        if self.kept:
            tables.append(
                ReportTable(
                    "Pseudo-labels",
                    "What the first classifier says of unlabelled images, where it is confident enough: the share that"
                    " was kept of what it put into a class, and how many of those are of that class, which only a"
                    " simulation knows.",
                    self._by_class(task.spec.classes),
                )
            )
        whence = "came to it, drawn from the silos' own models" if own_models else "it drew from the federated model"
        said = f"Images of every silo, and those that {whence}."
        tables.append(ReportTable("What was synthesised where", said, self._by_silo(task)))
        return tuple(tables)

    def _by_class(self, classes: tuple[str, ...]) -> dict[str, dict[str, Any]]:
        rows: dict[str, dict[str, Any]] = {}
        columns = (torch.tensor(counts).sum(0).tolist() for counts in (self.predicted, self.kept))
        correct = torch.tensor(self.correct).sum(0).tolist() if self.correct else []
        for j, (name, predicted, kept) in enumerate(zip(classes, *columns, strict=True)):
            row: dict[str, Any] = {"kept": kept, "kept share": kept / predicted if predicted else None}
            row["true precision"] = correct[j] / kept if kept and correct else None
            if self.thresholds:
                never = self.thresholds[j] > 1
                row["least confidence"] = None if never else self.thresholds[j]
                row["as precise as asked"] = "nobody labels it" if never else "yes" if self.reached[j] else "no"
            rows[name] = row
        return rows

    def _by_silo(self, task: Task) -> dict[str, dict[str, Any]]:
        rows: dict[str, dict[str, Any]] = {}
        for k, (name, member) in enumerate(zip(task.shown_names, task.census, strict=True)):
            row: dict[str, Any] = {"labelled": member.num_examples}
            if self.kept:
                row |= {"unlabelled": sum(self.predicted[k]), "pseudo-labelled": sum(self.kept[k])}
            made = self.made[k] if self.made else []
            row["synthesised"] = sum(made)
            row["of class"] = ", ".join(
                f"{label}: {count}" for label, count in zip(task.spec.classes, made, strict=False) if count
            )
            rows[name] = row
        return rows


def _total(counts: Counts) -> int:
    return sum(sum(row) for row in counts)
