"""The tables of a sweep: fidelity, utility, cost, differences, and the paper's rows beside the measured ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from matplotlib.figure import Figure

from fedsynth.cli.tables.estimates import alike_values, estimate, estimate_text
from fedsynth.cli.tables.measures import COST, FEW_LABELS, FIDELITY, PRIVACY, Measure
from fedsynth.cli.tables.published import PUBLISHED, SOURCE, PublishedRow
from fedsynth.cli.tables.sweep_rows import SweepRow, bold_row, paired_differences
from fedsynth.evaluation.intervals import mean_and_interval
from fedsynth.output.comparison import ComparisonCell, ComparisonTable
from fedsynth.output.comparison_figures import Estimate, trade_off
from fedsynth.output.table_formats import csv_text
from fedsynth.units import show

INCEPTION = "inception-v3-compat"
_CLASSIFIERS = {"logistic-regression": "LogReg", "mlp": "MLP", "cnn": "CNN", "resnet": "ResNet"}
_SHORT = {
    "kernel-distance": "KD",
    "precision": "P",
    "recall": "R",
    "density": "D",
    "coverage": "C",
    "inception-score": "IS",
}
_ARROWS = {"higher": " ↑", "lower": " ↓"}
_LIKENESS = ("frechet-distance", "kernel-distance", "precision", "recall", "density", "coverage")
_TOLD = {
    "privacy-epsilon": "ε",
    "copied-share": "near-copies",
    "epsilon-membership-auc": "AUC, models",
    "epsilon-membership-auc-highest": "AUC, model that shows most",
    "released-membership-auc": "AUC, images",
}
_LEARNT_FROM = {
    "classifier-accuracy-synthetic": "labels + synthesis ↑",
    "classifier-accuracy-labelled": "labels ↑",
    "classifier-accuracy-pseudo": "labels + pseudo-labels ↑",
    "classifier-accuracy-fixmatch": "FixMatch ↑",
    "classifier-accuracy-all": "all labels ↑",
    "pseudo-label-share": "pseudo-labelled",
    "pseudo-label-precision": "of them true ↑",
}
PRIVACY_NOTE = (
    "ε: what each run promises of one training image more or less, at dp-delta; '-' promises nothing; in dp-sum towards"
    " the server. AUC: membership inference, .5 is guessing; a weak attack is no proof"
)
_COSTS = ("rounds", "bytes-down", "bytes-up", "client-seconds")

Column = tuple[str, Measure]
"""Head and measure."""


def paper_tables(rows: Sequence[SweepRow], against: SweepRow | None = None) -> list[ComparisonTable]:
    """Return the tables that these runs have numbers for, and the differences to a row if one is chosen."""
    likeness = [*_likeness(rows), *_accuracies(rows)]
    tables = [
        _table("Fidelity and utility", likeness, rows, _published(rows)),
        _table("Classification in detail", _detail(rows), rows, ()),
        _table("The silos' own classifier, right answers by what it learnt from", _few_labels(rows), rows, ()),
        _table("Who was trained on", _privacy(rows), rows, ()),
        _table("Cost of a run", _costs(), rows, ()),
    ]
    if against is not None:
        tables.append(_differences([*likeness, *_costs()], rows, against))
    return [table for table in tables if len(table.columns) > 1 or table.title == "Cost of a run"]


def table_notes(rows: Sequence[SweepRow]) -> list[str]:
    """Return what a reader must know: what the numbers are, what is bold, and where the paper's rows come from."""
    notes = [
        "numbers are means over seeds ± the half width of the 95 % interval (Student's t); a single run has none",
        "bold: the best, where its interval overlaps with no other row's; a row that lacks runs is never bold",
        f"measured on {_measured_with(rows)}",
    ]
    if _privacy(rows):
        notes.append(PRIVACY_NOTE)
    return [*notes, SOURCE] if _published(rows) else notes


def as_csv(rows: Sequence[SweepRow], against: SweepRow | None = None) -> str:
    """Return one line per row with mean and half interval of every measure, unrounded; published rows come last."""
    columns = [*_likeness(rows), *_accuracies(rows), *_detail(rows), *_few_labels(rows), *_privacy(rows), *_costs()]
    measures = list({measure.key: measure for _, measure in columns}.values())
    heads = [name for measure in measures for name in (measure.key, f"{measure.key} ±")]
    differing = [f"{head} minus {against.label}" for head in heads] if against is not None else []
    lines = [[*_csv_start(row), *_csv_numbers(row, against, measures)] for row in rows]
    for paper in _published(rows):
        numbers = [value for measure in measures for value in (paper.values.get(measure.key), None)]
        lines.append([paper.name, 1, 1, SOURCE, INCEPTION, None, *numbers, *(None for _ in differing)])
    return csv_text(["row", "runs", "planned", "missing", "feature-space", "n", *heads, *differing], lines)


def _csv_start(row: SweepRow) -> list[object]:
    return [row.label, len(row.group.runs), row.planned, "; ".join(row.gaps), _space([row]), _count([row])]


def _csv_numbers(row: SweepRow, against: SweepRow | None, measures: Sequence[Measure]) -> list[object]:
    found = [estimate(measure, row.group) for measure in measures]
    if against is not None:
        found += [paired_differences(row, against, measure)[0] for measure in measures]
    return [value for e in found for value in (e or (None, None))]


def trade_offs(rows: Sequence[SweepRow]) -> dict[str, Figure]:
    """Return pictures of quality against rounds and against bytes, by name; none without a measured run."""
    qualities = [*_likeness(rows)[:1], *_accuracies(rows)[-1:]]
    costs = {"rounds": ("rounds",), "bytes": ("bytes-up", "bytes-down")}
    words = {"rounds": "rounds", "bytes": "bytes between server and silos, both ways"}
    figures = {}
    for name, keys in costs.items():
        panels = {
            head: {row.label: (_total(row, keys), alike_values(measure, row.group)) for row in rows}
            for head, measure in qualities
        }
        if panels:
            figures[f"quality-{name}"] = trade_off(panels, words[name])
    return figures


def _likeness(rows: Sequence[SweepRow]) -> list[Column]:
    known = {measure.key: measure for measure in FIDELITY}
    return _present([(_head(known[key], rows), known[key]) for key in _LIKENESS], rows)


def _accuracies(rows: Sequence[SweepRow]) -> list[Column]:
    columns = [(f"{name} ↑", _classification("accuracy", key)) for key, name in _CLASSIFIERS.items()]
    return _present(columns, rows)


def _detail(rows: Sequence[SweepRow]) -> list[Column]:
    """Return IS and FID beside accuracy, precision, recall and F1 of the main classifier."""
    main = next((key for key in ("cnn", "resnet", "mlp", *_CLASSIFIERS) if _has(rows, f"accuracy-{key}")), None)
    if main is None:
        return []
    name = _CLASSIFIERS[main]
    words = {"accuracy": "accuracy", "macro-precision": "precision", "macro-recall": "recall", "macro-f1": "F1"}
    columns = [(f"{name} {word} ↑", _classification(key, main)) for key, word in words.items()]
    drawn = [m for m in FIDELITY if m.key in ("inception-score", "frechet-distance")]
    return _present([*columns, *((_head(measure, rows), measure) for measure in reversed(drawn))], rows)


def _classification(key: str, classifier: str) -> Measure:
    return Measure(f"{key}-{classifier}", "higher", ("n-train",))


def _costs() -> list[Column]:
    names = {"bytes-down": "down", "bytes-up": "up", "client-seconds": "client time"}
    # What a method costs is no contest: nothing of it is bold.
    return [(names.get(m.key, m.key), replace(m, better="")) for m in COST if m.key in _COSTS]


def _privacy(rows: Sequence[SweepRow]) -> list[Column]:
    """Return what runs promise, and how well an attacker tells training images from others."""
    return _present([(_TOLD[measure.key], measure) for measure in PRIVACY], rows)


def _few_labels(rows: Sequence[SweepRow]) -> list[Column]:
    """Return what classifiers learnt that silos of few labels trained together."""
    return _present([(_LEARNT_FROM[measure.key], measure) for measure in FEW_LABELS], rows)


def _present(columns: Sequence[Column], rows: Sequence[SweepRow]) -> list[Column]:
    return [column for column in columns if _has(rows, column[1].key)]


def _has(rows: Sequence[SweepRow], key: str) -> bool:
    return any(row.group.values(key) for row in rows)


def _head(measure: Measure, rows: Sequence[SweepRow]) -> str:
    """Name a measure of likeness; a Fréchet distance is FID in Inception's features only, and nothing without N."""
    arrow = _ARROWS.get(measure.better, f" ({measure.better})")
    if measure.key != "frechet-distance":
        return _SHORT[measure.key] + arrow
    space, n = _space(rows), _count(rows)
    return (f"FID (N = {n})" if space == INCEPTION else f"FD ({space}, N = {n})") + arrow


def _table(
    title: str, columns: Sequence[Column], rows: Sequence[SweepRow], published: Sequence[PublishedRow]
) -> ComparisonTable:
    cells = [_cells(measure, rows) for _, measure in columns]
    lines = {row.label: [ComparisonCell(row.seeds), *(c[index] for c in cells)] for index, row in enumerate(rows)}
    for paper in published:
        lines[paper.name] = [ComparisonCell("1"), *(_published_cell(paper, measure) for _, measure in columns)]
    return ComparisonTable(title, ["seeds", *(head for head, _ in columns)], lines)


def _cells(measure: Measure, rows: Sequence[SweepRow]) -> list[ComparisonCell]:
    best = bold_row(rows, measure)
    texts = [estimate_text(estimate(measure, row.group), measure.unit) for row in rows]
    return [ComparisonCell(text, index == best) for index, text in enumerate(texts)]


def _published_cell(paper: PublishedRow, measure: Measure) -> ComparisonCell:
    value = paper.values.get(measure.key)
    unit = " (FID)" if measure.key == "frechet-distance" else ""
    return ComparisonCell("" if value is None else show(value) + unit)


def _published(rows: Sequence[SweepRow]) -> tuple[PublishedRow, ...]:
    """Return the paper's rows for the dataset, if all rows have the same."""
    datasets = {run.config.data.dataset for row in rows for run in row.group.runs}
    return PUBLISHED.get(datasets.pop(), ()) if len(datasets) == 1 else ()


def _differences(columns: Sequence[Column], rows: Sequence[SweepRow], against: SweepRow) -> ComparisonTable:
    lines = {}
    for row in rows:
        if row is not against:
            found = [paired_differences(row, against, measure) for _, measure in columns]
            pairs = max((count for _, count in found), default=0)
            texts = [_signed(e, measure) for (e, _), (_, measure) in zip(found, columns, strict=True)]
            lines[row.label] = [ComparisonCell(str(pairs)), *map(ComparisonCell, texts)]
    title = f"Differences to {against.label}, paired by seed"
    return ComparisonTable(title, ["pairs", *(head for head, _ in columns)], lines)


def _signed(found: Estimate | None, measure: Measure) -> str:
    if found is None:
        return "-"
    sign = "−" if found[0] < 0 else "+" if found[0] > 0 else ""
    return sign + estimate_text((abs(found[0]), found[1]), measure.unit)


def _space(rows: Sequence[SweepRow]) -> str:
    return " / ".join(_distinct(rows, "feature-space"))


def _count(rows: Sequence[SweepRow]) -> str:
    return " / ".join(_distinct(rows, "n"))


def _distinct(rows: Sequence[SweepRow], key: str) -> list[str]:
    found: Iterator[Any] = ((run.results or {}).get(key) for row in rows for run in row.group.runs)
    return list(dict.fromkeys(str(value) for value in found if value is not None))


def _measured_with(rows: Sequence[SweepRow]) -> str:
    n, space, trained = _count(rows), _space(rows), " / ".join(_distinct(rows, "n-train"))
    if not space:
        return "nothing: no run has measurements"
    name = "Inception's features, so that FD is FID" if space == INCEPTION else f"{space} features: FD is no FID"
    return f"N = {n} synthetic and as many real test images, in {name}; classifiers are trained on {trained} images"


def _total(row: SweepRow, keys: Sequence[str]) -> float | None:
    """Return the mean over runs of a sum of numbers."""
    sums = [sum(run.value(key) or 0.0 for key in keys) for run in row.group.runs]
    return mean_and_interval(sums)[0] if sums else None
