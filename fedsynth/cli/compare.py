"""Show runs side by side on one page; runs that differ only in their seed become means with intervals."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from fedsynth.cli.options import refuse_rest
from fedsynth.cli.tables.estimates import best_row, estimate, estimate_text, measured_alike
from fedsynth.cli.tables.measures import COST, FIDELITY, MEMORISATION, Measure
from fedsynth.cli.tables.run_groups import (
    Run,
    RunGroup,
    comparability_warnings,
    differing_settings,
    group_runs,
    read_runs,
)
from fedsynth.errors import UserError
from fedsynth.evaluation.array_checks import ENOUGH_FOR_FRECHET
from fedsynth.output import SyntheticDataset, terminal_table
from fedsynth.output.comparison import (
    ComparisonCell,
    ComparisonContent,
    ComparisonTable,
    read_samples,
    write_comparison,
)
from fedsynth.text import printable
from fedsynth.units import show

_REAL = "real images instead"
_BASES = {"n": "N =", "n-train": "N =", "feature-space": "in", "memorisation-space": "in"}
"""What a measure depends on -> the word before it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run folders, and where the page goes."""
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="run folder")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/comparison.html"),
        help="the page; its pictures go to <name>-figures/ beside it (default: runs/comparison.html)",
    )


def execute(options: argparse.Namespace, rest: list[str]) -> int:
    """Print the tables, and write the page.

    Raises:
        UserError: a folder is given twice or is no run folder, or the page cannot be written.
    """
    refuse_rest("compare", rest)
    groups = group_runs(read_runs(options.runs))
    content = _content(groups)
    replaced = options.output.is_file()
    write_comparison(options.output, content)
    for table in content.tables:
        rows = {}
        for label, cells in table.rows.items():
            texts = [f"{cell.text} *" if cell.best else cell.text for cell in cells]
            rows[label] = dict(zip(table.columns, texts, strict=True))
        print(f"{table.title}\n{terminal_table(rows)}\n")
    if any(len(group.finished) > 1 for group in groups):
        print("±: half of the 95 % interval over runs that differ in their seed alone (Student's t)")
    if any(cell.best for table in content.tables for cells in table.rows.values() for cell in cells):
        print("* the best of its column: its 95 % interval touches no other row's")
    for warning in content.warnings:
        print(f"note: {printable(warning)}")
    print(f"comparison {options.output}{' (in place of the one that was there; --output gives another)' * replaced}")
    return 0


def _content(groups: Sequence[RunGroup]) -> ComparisonContent:
    runs = [run for group in groups for run in group.runs]
    chosen, filled_in = differing_settings([group.runs for group in groups])
    # Every label begins with the strategy.
    chosen = [key for key in chosen if key != "strategy"]
    samples, missing = _samples(groups)
    columns = _tables(groups)
    return ComparisonContent(
        title=f"{len(runs)} runs side by side" if len(runs) > 1 else "One run",
        lead=_lead(groups),
        runs=[
            {"row": group.label, "seed": run.seed, "folder": run.name, "state": _state(run)}
            for group in groups
            for run in group.runs
        ],
        tables=[_table(title, measures, groups) for title, measures in columns.items()],
        warnings=[*comparability_warnings(groups), *_gaps(columns, groups), *missing],
        dots=_dots(columns, groups),
        rounds={group.label: [run.folder.read_metrics() for run in group.runs] for group in groups},
        samples=samples,
        settings={key: {group.label: group.settings.get(key, "-") for group in groups} for key in chosen},
        filled_in={key: {group.label: group.settings.get(key, "-") for group in groups} for key in filled_in},
    )


def _tables(groups: Sequence[RunGroup]) -> dict[str, list[Measure]]:
    """Return the measures that some run has, by table."""
    keys = dict.fromkeys(key for group in groups for run in group.finished for key in run.results or {})
    ends = ("-interval", "-std", "-lowest", "-highest")
    accuracies = [key for key in keys if key.startswith("accuracy-") and not key.endswith(ends)]
    utility = [Measure(key, "higher", ("n-train",), f"real-{key}") for key in accuracies]
    counts = [n for group in groups for n in group.values("n")]
    few = bool(counts) and min(counts) < ENOUGH_FOR_FRECHET
    tables = {
        # As in a run's own report: with few images the kernel distance is the one to trust.
        "Likeness to real images": sorted(FIDELITY, key=lambda m: m.key != "kernel-distance") if few else FIDELITY,
        "Classifiers trained on the synthetic images, tested on real ones": utility,
        "Copies of training images": MEMORISATION,
        "Cost": COST,
    }
    present = {title: [m for m in row if any(g.values(m.key) for g in groups)] for title, row in tables.items()}
    # Without any result one table still lists the rows, and says that they have none.
    return {title: measures for title, measures in present.items() if measures or title == "Cost"}


def _table(title: str, measures: Sequence[Measure], groups: Sequence[RunGroup]) -> ComparisonTable:
    columns = [_cells(measure, groups) for measure in measures]
    rows = {
        group.label: [ComparisonCell(_count(group, measures)), *(column[index] for column in columns)]
        for index, group in enumerate(groups)
    }
    real = [_real(measure, groups) for measure in measures]
    if any(value is not None for value in real):
        rows[_REAL] = [ComparisonCell(""), *(ComparisonCell("" if v is None else show(v)) for v in real)]
    head = f"{title}{_measured_with(measures, groups)}"
    return ComparisonTable(head, ["runs", *(measure.head for measure in measures)], rows)


def _measured_with(measures: Sequence[Measure], groups: Sequence[RunGroup]) -> str:
    """Say how many images the numbers of a table are of, and in which space, as far as that is known."""
    bases = dict.fromkeys(basis for measure in measures for basis in measure.bases)
    results = [run.results for group in groups for run in group.finished if run.results]
    said = []
    for basis, word in _BASES.items():
        found = dict.fromkeys(show(row[basis]) for row in results if row.get(basis) is not None)
        if basis in bases and found:
            said.append(f"{word} {' or '.join(found)}")
    return f" ({', '.join(said)})" if said else ""


def _cells(measure: Measure, groups: Sequence[RunGroup]) -> list[ComparisonCell]:
    estimates = [estimate(measure, group) for group in groups]
    best = best_row(estimates, measure.better) if measured_alike([r for g in groups for r in g.runs], measure) else None
    return [ComparisonCell(estimate_text(found, measure.unit), index == best) for index, found in enumerate(estimates)]


def _real(measure: Measure, groups: Sequence[RunGroup]) -> float | None:
    """Return what real images reach, the mean over runs; None if it is not known or not one number."""
    runs = [run for group in groups for run in group.runs]
    values = [value for run in runs if (value := run.value(measure.real)) is not None]
    return fmean(values) if values and measured_alike(runs, measure) else None


def _count(group: RunGroup, measures: Sequence[Measure]) -> str:
    """Say how many of a row's runs a table counts."""
    having = sum(any(run.value(measure.key) is not None for measure in measures) for run in group.runs)
    if not group.finished:
        return "no results"
    return f"{having}" if having == len(group.runs) else f"{having} of {len(group.runs)}"


def _dots(tables: dict[str, list[Measure]], groups: Sequence[RunGroup]) -> dict[str, Any]:
    """Return what :func:`fedsynth.output.comparison_figures.measure_dots` draws: all but the cost."""
    measures = [measure for title, row in tables.items() if title != "Cost" for measure in row]
    return {
        measure.head: {group.label: (group.values(measure.key), estimate(measure, group)) for group in groups}
        for measure in measures
    }


def _gaps(tables: dict[str, list[Measure]], groups: Sequence[RunGroup]) -> Iterator[str]:
    """Say of which measures a row has no mean, and which only some of its measured runs have, or none."""
    for group in groups:
        unlike = [m.key for row in tables.values() for m in row if not measured_alike(group.runs, m)]
        if unlike:
            yield f"{group.label}: its runs were not measured alike, so there is no mean of {', '.join(unlike)}"
    for group in groups:
        measured = [run for run in group.runs if run.measured]
        counts = {m.key: len(group.values(m.key)) for row in tables.values() for m in row if m.bases}
        gaps = [f"{key} ({n or 'none'} of {len(measured)})" for key, n in counts.items() if n < len(measured)]
        if gaps:
            yield f"{group.label}: not every measured run has {', '.join(gaps)}"


def _samples(groups: Sequence[RunGroup]) -> tuple[dict[str, tuple[str, SyntheticDataset]], list[str]]:
    """Read the images of the first finished run of every group; the second list says which groups have none."""
    samples, missing = {}, []
    for group in groups:
        if not group.finished:
            continue
        run = group.finished[0]
        try:
            dataset, sets = read_samples(run.folder.synthetic)
        except UserError as error:
            missing.append(f"{group.label}: no images ({error})")
            continue
        source = f"seed {run.seed}, {len(dataset.images):,} images" + (f" of {sets} silos in turn" if sets > 1 else "")
        samples[group.label] = (source, dataset)
    return samples, missing


def _state(run: Run) -> str:
    if run.results is None:
        return "no results.json"
    return "measured" if run.measured else "not measured"


def _lead(groups: Sequence[RunGroup]) -> str:
    words = {
        "dataset": "dataset {}",
        "num-clients": "{} silos",
        "partition": "{} partition",
        "alpha": "alpha {}",
        "num-samples": "{:,} synthetic images",
    }
    values = {key: {group.settings[key] for group in groups} for key in words}
    if values["partition"] != {"dirichlet"}:
        del values["alpha"]
    common = [words[key].format(*found) for key, found in values.items() if len(found) == 1]
    rows = f"{len(groups)} rows" if len(groups) > 1 else "one row"
    return f"Runs in {rows}. Common to all: {', '.join(common) or 'nothing'}."
