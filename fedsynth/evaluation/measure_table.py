"""Evaluations as a table: one row per measure, with its N, its feature space and what real images reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from fedsynth.evaluation.array_checks import ENOUGH_FOR_FRECHET
from fedsynth.evaluation.evaluation import PIXEL_SPACE, Evaluation

_FIDELITY = {
    "frechet-distance": "lower",
    "kernel-distance": "lower",
    "inception-score": "higher",
    "precision": "higher",
    "recall": "higher",
    "density": "near 1",
    "coverage": "higher",
}
_MEMORISATION = {
    "nearest-neighbour-ratio": ("near 1", 1.0),
    "copied-share": ("lower", 0.05),
    "released-membership-auc": ("near .5", 0.5),
    "released-membership-tpr-at-1-percent-fpr": ("near .01", 0.01),
}
"""Measure -> where it should be, and what fresh real images reach."""
SYNTHETIC, REAL, BOTH, SPREAD = "synthetic", "real", "real + synthetic", "±"
SPREAD_LEGEND = (
    "±: of an accuracy half of the 95 % interval over trainings of the classifier; of kernel distance and inception"
    " score the standard deviation over random subsets"
)
"""For below the table of :func:`measure_rows`, where it has a column ``±``."""


def mean_columns(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """Return the columns of one evaluation; of several the means, with ``-lowest`` and ``-highest`` beside them."""
    rows = [evaluation.row() for evaluation in evaluations]
    if len(rows) < 2:
        return rows[0] if rows else {}
    columns: dict[str, Any] = {}
    for key in rows[0]:
        columns |= _column(key, [row[key] for row in rows if key in row])
    return {**columns, "notes": "; ".join(all_notes(evaluations))}


def measure_rows(evaluations: Sequence[Evaluation]) -> dict[str, dict[str, Any]]:
    """Lay out evaluations as measure -> columns, each number with its N and feature space; means of several.

    With too few images for a Fréchet distance to be trusted, the kernel distance comes first. What ``±`` is says
    :data:`SPREAD_LEGEND`.
    """
    row = mean_columns(evaluations)
    first = evaluations[0]
    fidelity = _FIDELITY
    if first.n < ENOUGH_FOR_FRECHET:
        fidelity = {"kernel-distance": _FIDELITY["kernel-distance"]} | _FIDELITY
    rows: dict[str, dict[str, Any]] = {}
    for measure, better in fidelity.items():
        if measure in row:
            rows[measure] = {**_spread(row, measure), "better": better, "N": first.n, "in": first.feature_space}
    for measure in [f"accuracy-{name}" for name in first.utility]:
        beside = {BOTH: row[f"joint-{measure}"], "better": "higher", "N": first.n_train, "in": "real test images"}
        rows[measure] = {**_spread(row, measure), **beside}
    return rows | _memorisation_rows(row)


def all_notes(evaluations: Sequence[Evaluation]) -> list[str]:
    """Return the notes of all evaluations, each once."""
    return list(dict.fromkeys(note for evaluation in evaluations for note in evaluation.notes))


def _memorisation_rows(row: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    rows = {}
    for measure, (better, fresh) in _MEMORISATION.items():
        if measure in row:
            n = row["released-members" if measure.startswith("released") else "synthetic-count"]
            rows[measure] = {**_spread(row, measure), REAL: fresh, "better": better, "N": n, "in": PIXEL_SPACE}
    if "authenticity" in row:
        beside = {REAL: row["test-authenticity"], "better": "higher", "N": row["synthetic-count"], "in": PIXEL_SPACE}
        rows["authenticity"] = {**_spread(row, "authenticity"), **beside}
    return rows


def _column(key: str, values: Sequence[Any]) -> dict[str, Any]:
    if isinstance(values[0], Mapping):
        return {}
    if isinstance(values[0], str) or len(set(values)) == 1:
        return {key: values[0]}
    return {key: fmean(values), f"{key}-lowest": min(values), f"{key}-highest": max(values)}


def _spread(row: Mapping[str, Any], measure: str) -> dict[str, Any]:
    """Return a measure, what real images reach, and its spread over seeds, subsets or several sets if there is one."""
    sources = {
        SYNTHETIC: (measure,),
        SPREAD: (f"{measure}-interval", f"{measure}-std"),
        "lowest": (f"{measure}-lowest",),
        "highest": (f"{measure}-highest",),
        REAL: (f"reference-{measure}", f"real-{measure}"),
    }
    return {column: row[key] for column, keys in sources.items() for key in keys if key in row}
