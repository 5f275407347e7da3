"""Evaluations laid out for people: one row a measure, with its N, its space and what stands beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from fedsynth.evaluation.suite import Evaluation
from fedsynth.evaluation.utility import CLASSIFIERS

_FIDELITY = {
    "frechet-distance": "lower",
    "precision": "higher",
    "recall": "higher",
    "density": "near 1",
    "coverage": "higher",
}
_MEMORISATION = {"nearest-neighbour-ratio": 1.0, "copied-share": 0.05}
"""Measure -> what fresh real images reach."""


def summarise(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """Return the columns of one evaluation; of several the means, with ``-lowest`` and ``-highest`` beside them."""
    rows = [evaluation.row() for evaluation in evaluations]
    if len(rows) < 2:
        return rows[0] if rows else {}
    columns: dict[str, Any] = {}
    for key in rows[0]:
        columns |= _column(key, [row[key] for row in rows if key in row])
    return {**columns, "notes": "; ".join(all_notes(evaluations))}


def results_rows(evaluations: Sequence[Evaluation]) -> dict[str, dict[str, Any]]:
    """Lay out evaluations as measure -> columns, each number with its N and feature space; means of several."""
    row, fidelity = summarise(evaluations), evaluations[0].fidelity
    rows = {
        measure: {**_spread(row, measure), "better": better, "N": fidelity.n, "in": fidelity.feature_space}
        for measure, better in _FIDELITY.items()
    }
    rows["frechet-distance"]["real"] = fidelity.reference_frechet_distance
    return rows | _utility_rows(row, evaluations[0].n_train) | _memorisation_rows(row)


def all_notes(evaluations: Sequence[Evaluation]) -> list[str]:
    """Return the notes of all evaluations, each once."""
    return list(dict.fromkeys(note for evaluation in evaluations for note in evaluation.notes))


def _utility_rows(row: Mapping[str, Any], n_train: int) -> dict[str, dict[str, Any]]:
    beside = {"better": "higher", "N": n_train, "in": "real test images"}
    measures = [f"accuracy-{name}" for name in CLASSIFIERS]
    return {m: {**_spread(row, m), "real": row[f"real-{m}"], **beside} for m in measures}


def _memorisation_rows(row: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    if "copied-share" not in row:
        return {}
    beside = {"N": row["synthetic-count"], "in": row["memorisation-space"]}
    rows = {m: {**_spread(row, m), "real": fresh, **beside} for m, fresh in _MEMORISATION.items()}
    rows["nearest-neighbour-ratio"]["better"] = "near 1"
    rows["copied-share"]["better"] = "lower"
    authenticity = {**_spread(row, "authenticity"), "real": row["test-authenticity"], "better": "higher"}
    return rows | {"authenticity": {**authenticity, **beside}}


def _column(key: str, values: Sequence[Any]) -> dict[str, Any]:
    if isinstance(values[0], str) or len(set(values)) == 1:
        return {key: values[0]}
    return {key: fmean(values), f"{key}-lowest": min(values), f"{key}-highest": max(values)}


def _spread(row: Mapping[str, Any], measure: str) -> dict[str, Any]:
    """Return a measure, and its range over several sets if there is one."""
    columns = {"synthetic": row[measure]}
    for end in ("lowest", "highest"):
        if f"{measure}-{end}" in row:
            columns[end] = row[f"{measure}-{end}"]
    return columns
