"""What a run's report and results table say, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedsynth.evaluation import CLASSIFIERS, Evaluation
from fedsynth.output import ReportContent
from strategies.base import Outcome, Task

_FIDELITY = {
    "frechet-distance": "lower",
    "precision": "higher",
    "recall": "higher",
    "density": "near 1",
    "coverage": "higher",
}
_HOW = {
    "dfd": "each silo trained its own diffusion model and answered noise queries; only noise predictions travelled",
    "pooled": "each silo trained its own diffusion model and drew its share of the images from it",
    "fedavg": "the silos trained one diffusion model together; only weights travelled",
    "centralised": "one diffusion model was trained on the union of the silos' images, a reference no federation has",
}


def results_rows(evaluation: Evaluation) -> dict[str, dict[str, Any]]:
    """Lay out an evaluation as measure -> columns, each number with its N and feature space."""
    row, fidelity = evaluation.row(), evaluation.fidelity
    rows: dict[str, dict[str, Any]] = {}
    for measure, better in _FIDELITY.items():
        rows[measure] = {"synthetic": row[measure], "better": better, "N": fidelity.n, "in": fidelity.feature_space}
    rows["frechet-distance"]["real"] = fidelity.reference_frechet_distance
    for name in CLASSIFIERS:
        measure = f"accuracy-{name}"
        rows[measure] = {
            "synthetic": row[measure],
            "real": row[f"real-{measure}"],
            "better": "higher",
            "N": evaluation.n_train,
            "in": "real test images",
        }
    return rows


def report_content(
    task: Task,
    outcome: Outcome,
    cost: Mapping[str, float],
    evaluation: Evaluation | None,
    rounds: list[dict[str, Any]],
) -> ReportContent:
    """Gather everything the report shows."""
    config, census, real = task.config, task.census, task.federation
    strategy, dataset = config.run.strategy, config.data.dataset
    return ReportContent(
        title=f"{strategy} on {dataset}, {len(census)} silos",
        explanation=f"{len(outcome.labels)} labelled synthetic images from {len(census)} silos that kept their real"
        f" images to themselves: {_HOW[strategy]}.",
        classes=task.spec.classes,
        synthetic_images=outcome.images,
        synthetic_labels=outcome.labels,
        headline=_headline(outcome, cost, evaluation),
        results=results_rows(evaluation) if evaluation else {},
        real_images=real.test.images if real else None,
        real_labels=real.test.labels if real else None,
        silos=[_silo_row(task, k) for k in range(len(census))],
        silo_names=[member.name for member in census],
        label_counts=census.label_counts.numpy(),
        losses=outcome.curves,
        rounds=rounds,
        round_keys=[key for key in ("effective-experts",) if rounds and key in rounds[0]],
        cost=cost,
        settings=config.to_run_config(),
        resolved=config.resolved,
        limits=evaluation.notes if evaluation else (),
    )


def _headline(outcome: Outcome, cost: Mapping[str, float], evaluation: Evaluation | None) -> dict[str, Any]:
    headline: dict[str, Any] = {"synthetic images": len(outcome.labels), "rounds": cost["rounds"]}
    if evaluation:
        row = evaluation.row()
        headline["accuracy on real test images (CNN trained on synthetic)"] = row["accuracy-cnn"]
        headline["the same trained on real images"] = row["real-accuracy-cnn"]
        headline["coverage of real test images"] = row["coverage"]
    return headline


def _silo_row(task: Task, k: int) -> dict[str, Any]:
    member = task.census.members[k]
    row: dict[str, Any] = {
        "silo": member.name,
        "training images": member.num_examples,
        "classes": int(np.count_nonzero(member.label_counts)),
    }
    if member.curve:
        row |= {"final loss": member.curve[-1][1], "training seconds": round(member.train_seconds, 1)}
    return row
