"""The rows of a sweep's tables: which runs each has, and which are missing and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedsynth.cli.sweeps.sweep_manifest import Entry
from fedsynth.cli.tables.estimates import best_row, estimate, measured_alike
from fedsynth.cli.tables.measures import Measure
from fedsynth.cli.tables.run_groups import Run, RunGroup, read_runs
from fedsynth.evaluation.intervals import mean_and_interval
from fedsynth.output.comparison_figures import Estimate


@dataclass(frozen=True, eq=False)
class SweepRow:
    """A row of a sweep.

    Attributes:
        group: Its runs that have results; perhaps none.
        planned: Number of runs it should have.
        gaps: Of each run that it lacks, which and why.
        begun: Whether any of its runs has been started.
    """

    group: RunGroup
    planned: int
    gaps: tuple[str, ...]
    begun: bool = True

    @property
    def label(self) -> str:
        """Its name in the sweep file."""
        return self.group.label

    @property
    def seeds(self) -> str:
        """Number of its runs: ``3``, or ``2 of 3; seed 1 failed: out of memory``."""
        if not self.gaps:
            return str(self.planned)
        return "; ".join([f"{len(self.group.runs)} of {self.planned} seeds", *self.gaps])


def sweep_rows(folder: Path, entries: Sequence[Entry]) -> list[SweepRow]:
    """Gather the runs of a sweep into its rows, in their order."""
    gathered: dict[str, list[Entry]] = {}
    for entry in entries:
        gathered.setdefault(entry.row, []).append(entry)
    return [_row(label, members, folder) for label, members in gathered.items()]


def bold_row(rows: Sequence[SweepRow], measure: Measure) -> int | None:
    """Return the index of the row that is the best beyond doubt, None if there is none.

    A row that lacks runs is never the best: those that failed might have changed its mean. A row with a single run has
    no interval; nothing is bold if its value is the best or the second best.
    """
    if not measured_alike([run for row in rows for run in row.group.runs], measure):
        return None
    found = [estimate(measure, row.group) for row in rows]
    sign = 1 if measure.better == "higher" else -1
    order = sorted((index for index, e in enumerate(found) if e), key=lambda index: -sign * _mean(found[index]))
    kept = [e if e and (e[1] is not None or index in order[:2]) else None for index, e in enumerate(found)]
    best = best_row(kept, measure.better)
    return None if best is None or rows[best].gaps else best


def paired_differences(row: SweepRow, against: SweepRow, measure: Measure) -> tuple[Estimate | None, int]:
    """Return the mean difference of a row to another over the seeds that both have, and the number of those seeds.

    The interval is Student's over the differences: what a seed does to both rows alike is not in it.
    """
    values, theirs = _by_seed(row, measure), _by_seed(against, measure)
    differences = [value - theirs[seed] for seed, value in values.items() if seed in theirs]
    if not differences or not measured_alike([*row.group.runs, *against.group.runs], measure):
        return None, 0
    return mean_and_interval(differences), len(differences)


def _row(label: str, members: Sequence[Entry], folder: Path) -> SweepRow:
    runs, gaps, begun = [], [], False
    for entry in members:
        path = folder / entry.folder
        run = read_runs([path])[0] if (path / "config.json").is_file() else None
        if run and run.results is not None:
            runs.append(run)
        else:
            gaps.append(f"seed {entry.seed} {_why_missing(entry, run)}")
            begun |= run is not None or entry.status in ("failed", "finished")
    group = RunGroup(label, tuple(sorted(runs, key=lambda run: run.seed)))
    return SweepRow(group, len(members), tuple(gaps), begun or bool(runs))


def _why_missing(entry: Entry, run: Run | None) -> str:
    if entry.status == "failed":
        return f"failed: {entry.reason}"
    if entry.status == "finished":
        return "is gone: its folder has no results any more"
    return "has not finished" if run else "has not been run"


def _by_seed(row: SweepRow, measure: Measure) -> dict[int, float]:
    return {run.seed: value for run in row.group.runs if (value := run.value(measure.key)) is not None}


def _mean(found: Estimate | None) -> float:
    return found[0] if found else 0.0
