"""What a run's report and results table say, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedsynth.config import REAL_SILOS
from fedsynth.evaluation import Evaluation, mean_columns
from fedsynth.output import ReportContent, evaluation_parts, headings_and_meanings
from fedsynth.privacy.statement import privacy_statement
from strategies.base import Outcome, Task
from strategies.results.federated_evaluation import SiloEvaluation
from strategies.results.measure import Measurements


def report_content(
    task: Task,
    outcome: Outcome,
    how: str,
    cost: Mapping[str, float],
    measured: Measurements,
    rounds: list[dict[str, Any]],
) -> ReportContent:
    """Gather everything the report shows; ``how`` says what the silos did, in half a sentence."""
    evaluations, results = list(measured.evaluations.values()), measured.table()
    config, census, real = task.config, task.census, task.real_folds
    strategy, guarantee = config.run.strategy, privacy_statement(config)
    dataset = "real silos" if config.data.dataset == REAL_SILOS else config.data.dataset
    return ReportContent(
        title=f"{strategy} on {dataset}, {len(census)} silos",
        explanation=f"{len(outcome.labels)} labelled synthetic images from {len(census)} silos that kept their real"
        f" images to themselves: {how}.",
        classes=task.spec.classes,
        synthetic_images=outcome.images,
        synthetic_labels=outcome.labels,
        headline=_headline(outcome, cost, evaluations),
        results=results,
        real_images=real[1].images if real else None,
        real_labels=real[1].labels if real else None,
        silos=[_silo_row(task, k, measured.at_silos) for k in range(len(census))],
        silo_names=task.shown_names,
        label_counts=census.label_counts.numpy(),
        losses=outcome.curves,
        rounds=rounds,
        round_keys=[key for key in ("effective-experts",) if rounds and key in rounds[0]],
        cost=cost,
        settings=config.to_run_config(),
        resolved=config.resolved,
        limits=measured.limits(),
        privacy=guarantee.sentences if guarantee else (),
        **headings_and_meanings(results),
        **(evaluation_parts(evaluations[0]) if len(evaluations) == 1 else {}),
    )


def _headline(outcome: Outcome, cost: Mapping[str, float], evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    headline: dict[str, Any] = {"synthetic images": len(outcome.labels), "rounds": cost["rounds"]}
    if evaluations:
        row = mean_columns(evaluations)
        of_silos = ", mean over the silos" if len(evaluations) > 1 else ""
        name = evaluations[0].main_classifier
        accuracy = f"accuracy on real test images ({name.upper()} trained on synthetic{of_silos})"
        headline[accuracy] = row[f"accuracy-{name}"]
        headline["the same trained on real images"] = row[f"real-accuracy-{name}"]
        headline[f"coverage of real test images{of_silos}"] = row["coverage"]
    return headline


def _silo_row(task: Task, k: int, at_silos: SiloEvaluation | None) -> dict[str, Any]:
    member = task.census.members[k]
    row: dict[str, Any] = {
        "silo": task.shown_names[k],
        "training images": member.num_examples,
        "classes": int(np.count_nonzero(member.label_counts)),
    }
    if member.steps:
        row |= {"final loss": member.curve[-1][1]} if member.curve else {}
        row["training seconds"] = round(member.train_seconds, 1)
        if member.steps < task.config.own_steps:
            row["stopped at step"] = member.steps
    if member.copied_share is not None:
        row["near-copies"] = member.copied_share
    return row | (at_silos.report_columns(member.name) if at_silos else {})
