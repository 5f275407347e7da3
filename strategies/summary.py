"""What a run's report and results table say, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from fedsynth.evaluation import CLASSIFIERS, Evaluation
from fedsynth.output import ReportContent
from strategies import STRATEGIES
from strategies.base import Outcome, Task
from strategies.federated_evaluation import SiloEvaluation

_FIDELITY = {
    "frechet-distance": "lower",
    "precision": "higher",
    "recall": "higher",
    "density": "near 1",
    "coverage": "higher",
}


def summarise(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """Return the columns of one evaluation; of several the means, with ``-lowest`` and ``-highest`` beside them."""
    rows = [evaluation.row() for evaluation in evaluations]
    if len(rows) < 2:
        return rows[0] if rows else {}
    columns: dict[str, Any] = {}
    for key in rows[0]:
        columns |= _column(key, [row[key] for row in rows])
    return {**columns, "notes": "; ".join(_notes(evaluations))}


def _column(key: str, values: Sequence[Any]) -> dict[str, Any]:
    if isinstance(values[0], str) or len(set(values)) == 1:
        return {key: values[0]}
    return {key: fmean(values), f"{key}-lowest": min(values), f"{key}-highest": max(values)}


def results_rows(evaluations: Sequence[Evaluation]) -> dict[str, dict[str, Any]]:
    """Lay out evaluations as measure -> columns, each number with its N and feature space; means of several."""
    row, fidelity = summarise(evaluations), evaluations[0].fidelity
    rows = {
        measure: {**_spread(row, measure), "better": better, "N": fidelity.n, "in": fidelity.feature_space}
        for measure, better in _FIDELITY.items()
    }
    rows["frechet-distance"]["real"] = fidelity.reference_frechet_distance
    for name in CLASSIFIERS:
        measure = f"accuracy-{name}"
        rows[measure] = {
            **_spread(row, measure),
            "real": row[f"real-{measure}"],
            "better": "higher",
            "N": evaluations[0].n_train,
            "in": "real test images",
        }
    return rows


def _spread(row: Mapping[str, Any], measure: str) -> dict[str, Any]:
    """Return a measure, and its range over the silos if there is one."""
    columns = {"synthetic": row[measure]}
    for end in ("lowest", "highest"):
        if f"{measure}-{end}" in row:
            columns[end] = row[f"{measure}-{end}"]
    return columns


def _notes(evaluations: Sequence[Evaluation]) -> list[str]:
    return list(dict.fromkeys(note for evaluation in evaluations for note in evaluation.notes))


def report_content(
    task: Task,
    outcome: Outcome,
    cost: Mapping[str, float],
    evaluations: Sequence[Evaluation],
    rounds: list[dict[str, Any]],
    at_silos: SiloEvaluation | None = None,
) -> ReportContent:
    """Gather everything the report shows."""
    config, census, real = task.config, task.census, task.federation
    strategy, dataset = config.run.strategy, config.data.dataset
    return ReportContent(
        title=f"{strategy} on {dataset}, {len(census)} silos",
        explanation=f"{len(outcome.labels)} labelled synthetic images from {len(census)} silos that kept their real"
        f" images to themselves: {STRATEGIES[strategy].how}.",
        classes=task.spec.classes,
        synthetic_images=outcome.images,
        synthetic_labels=outcome.labels,
        headline=_headline(outcome, cost, evaluations),
        results=(results_rows(evaluations) if evaluations else {}) | (at_silos.table() if at_silos else {}),
        real_images=real.test.images if real else None,
        real_labels=real.test.labels if real else None,
        silos=[_silo_row(task, k, at_silos) for k in range(len(census))],
        silo_names=[member.name for member in census],
        label_counts=census.label_counts.numpy(),
        losses=outcome.curves,
        rounds=rounds,
        round_keys=[key for key in ("effective-experts",) if rounds and key in rounds[0]],
        cost=cost,
        settings=config.to_run_config(),
        resolved=config.resolved,
        limits=(*_notes(evaluations), *(at_silos.notes if at_silos else ())),
    )


def _headline(outcome: Outcome, cost: Mapping[str, float], evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    headline: dict[str, Any] = {"synthetic images": len(outcome.labels), "rounds": cost["rounds"]}
    if evaluations:
        row = summarise(evaluations)
        of_silos = ", mean over the silos" if len(evaluations) > 1 else ""
        headline[f"accuracy on real test images (CNN trained on synthetic{of_silos})"] = row["accuracy-cnn"]
        headline["the same trained on real images"] = row["real-accuracy-cnn"]
        headline[f"coverage of real test images{of_silos}"] = row["coverage"]
    return headline


def _silo_row(task: Task, k: int, at_silos: SiloEvaluation | None) -> dict[str, Any]:
    member = task.census.members[k]
    row: dict[str, Any] = {
        "silo": member.name,
        "training images": member.num_examples,
        "classes": int(np.count_nonzero(member.label_counts)),
    }
    if member.curve:
        row |= {"final loss": member.curve[-1][1], "training seconds": round(member.train_seconds, 1)}
    return row | (at_silos.report_columns(member.name) if at_silos else {})
