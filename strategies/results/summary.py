"""What a run's report and results table say, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from importlib.metadata import version
from typing import Any

import numpy as np

from fedsynth import __version__
from fedsynth.config import REAL_SILOS, command_of, filled, published_settings
from fedsynth.evaluation import Evaluation, mean_columns
from fedsynth.output import (
    ROUNDS,
    Findings,
    ReportContent,
    Usefulness,
    evaluation_parts,
    findings_on_publishing,
    headings_and_meanings,
    verdict_of,
)
from fedsynth.privacy.statement import PrivacyStatement, privacy_statement
from fedsynth.units import rounded_up
from strategies.base import Outcome, Task
from strategies.results.federated_evaluation import SiloEvaluation
from strategies.results.measure import Measurements
from strategies.run.opening import found_settings


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
    findings, found = run_findings(task, measured), found_settings(config, task.spec)
    dataset = "real silos" if config.data.dataset == REAL_SILOS else config.data.dataset
    return ReportContent(
        title=f"{strategy} on {dataset}, {len(census)} silos",
        explanation=f"{len(outcome.labels)} labelled synthetic images from {len(census)} silos that kept their real"
        f" images to themselves: {how}.",
        classes=task.spec.classes,
        synthetic_images=outcome.images,
        synthetic_labels=outcome.labels,
        verdict=verdict_of(findings),
        headline=_headline(outcome, cost, evaluations) | _privacy_tiles(findings, guarantee),
        results=results,
        real_images=real[1].images if real else None,
        real_labels=real[1].labels if real else None,
        silos=[_silo_row(task, k, measured.at_silos) for k in range(len(census))],
        silo_names=task.shown_names,
        label_counts=census.label_counts.numpy(),
        losses=outcome.curves,
        rounds=rounds,
        round_keys=[key for key in ROUNDS if rounds and key in rounds[0]],
        round_meanings=ROUNDS,
        cost=cost,
        origin=_origin(task),
        command=command_of(config),
        settings=published_settings(config, found),
        resolved={*config.resolved, *filled(config, found)},
        tables=outcome.tables,
        limits=measured.limits(),
        privacy=guarantee.sentences if guarantee else (),
        **headings_and_meanings(results),
        **(evaluation_parts(evaluations[0]) if len(evaluations) == 1 else {}),
    )


def run_findings(task: Task, measured: Measurements) -> Findings:
    """Return what a verdict on the run is made from."""
    guarantee = privacy_statement(task.config)
    return replace(
        findings_on_publishing(measured.row()),
        usefulness=_usefulness(task, measured),
        epsilon=guarantee.epsilon if guarantee else None,
        delta=guarantee.delta if guarantee else None,
        towards=guarantee.towards if guarantee else "",
    )


def _usefulness(task: Task, measured: Measurements) -> Usefulness | None:
    evaluations, at_silos = list(measured.evaluations.values()), measured.at_silos
    if evaluations and task.real_folds is not None:
        row, name, test = mean_columns(evaluations), evaluations[0].main_classifier, task.real_folds[1]
        guessing = float(np.bincount(test.labels).max()) / len(test.labels)
        return Usefulness(row[f"accuracy-{name}"], row[f"real-accuracy-{name}"], guessing, len(test.labels))
    if at_silos is not None and at_silos.held_out:
        held_out = sum(silo.n for silo in at_silos.held_out.values())
        guessing = 1 / len(task.spec.classes)
        return Usefulness(at_silos.accuracy, None, guessing, held_out, "the silos' held-out images")
    return None


def _privacy_tiles(findings: Findings, guarantee: PrivacyStatement | None) -> dict[str, Any]:
    attack, promised = findings.models or findings.images, "none"
    if guarantee is not None:
        promised = f"ε {rounded_up(guarantee.epsilon)}, δ {guarantee.delta:g}"
        if guarantee.public is not None:
            promised += f" towards {guarantee.towards};"
            promised += f" ε {rounded_up(guarantee.public)} towards those who see model and images only"
    told_by = "images" if attack and not findings.models else "models"
    return {
        "differential privacy of the training": promised,
        f"do the {told_by} show who was trained on? AUC, .5 is guessing": attack.auc if attack else "not measured",
    }


def _origin(task: Task) -> dict[str, str]:
    """Return when, of what and with what the run was made."""
    data, spec = task.config.data, task.spec
    colour = "grey" if spec.channels == 1 else "RGB"
    images = f"{len(spec.classes)} classes, {spec.size} x {spec.size} pixels, {colour}"
    of = "the silos' own images" if data.dataset == REAL_SILOS else f"{data.dataset} ({data.partition} partition)"
    names = ("flwr", "torch", "diffusers")
    return {
        "made": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %z"),
        "data set": f"{of}, {images}",
        "with": ", ".join([f"fedsynth {__version__}", *(f"{name} {version(name)}" for name in names)]),
    }


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
    if any(other.version not in ("", __version__) for other in task.census):
        row["fedsynth"] = member.version or "not said"
    if member.steps:
        row |= {"final loss": member.curve[-1][1]} if member.curve else {}
        row["training seconds"] = round(member.train_seconds, 1)
        if member.steps < task.config.own_steps:
            row["stopped at step"] = member.steps
    if member.copied_share is not None:
        row["near-copies"] = member.copied_share
    return row | (at_silos.report_columns(member.name) if at_silos else {})
