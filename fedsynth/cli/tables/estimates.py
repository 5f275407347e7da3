"""Means of runs with their intervals, and which mean is the best beyond doubt."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fedsynth.cli.tables.measures import Measure
from fedsynth.cli.tables.run_groups import Run, RunGroup
from fedsynth.evaluation.intervals import mean_and_interval
from fedsynth.output.comparison_figures import Estimate
from fedsynth.units import show


def best_row(estimates: Sequence[Estimate | None], better: str) -> int | None:
    """Return the index of the best mean if its interval touches no other interval, else None.

    Nothing is best where another row has no interval: the spread of a single run is unknown.

    Args:
        estimates: mean and half of its interval of every row; None where a row has no value.
        better: ``higher`` or ``lower``; with anything else nothing is best.
    """
    sign = {"higher": 1.0, "lower": -1.0}.get(better)
    known = [(index, *found) for index, found in enumerate(estimates) if found is not None]
    if sign is None or len(known) < 2:
        return None
    spans = [(sign * mean, half, index) for index, mean, half in known if half is not None]
    if len(spans) < len(known):
        return None
    (mean, half, index), *others = sorted(spans, reverse=True)
    return index if all(mean - half > other + width for other, width, _ in others) else None


def estimate(measure: Measure, group: RunGroup) -> Estimate | None:
    """Return mean and half of its interval; None without values, or where they may not be averaged."""
    values = alike_values(measure, group)
    return mean_and_interval(values) if values else None


def alike_values(measure: Measure, group: RunGroup) -> list[float]:
    """Return the values of a group's runs; none where they may not be averaged."""
    return group.values(measure.key) if measured_alike(group.runs, measure) else []


def measured_alike(runs: Sequence[Run], measure: Measure) -> bool:
    """Whether the values of these runs were measured alike."""
    having = [run.results or {} for run in runs if run.value(measure.key) is not None]
    return all(len({str(results.get(basis)) for results in having}) < 2 for basis in measure.bases)


def estimate_text(found: Estimate | None, unit: Callable[[float], str]) -> str:
    """Write a mean with its interval, with as many decimals as the mean has; ``-`` for none."""
    if found is None:
        return "-"
    mean, half = found
    if unit is not show:
        return unit(mean) + (f" ± {unit(half)}" if half else "")
    if mean.is_integer() and not half:
        return show(int(mean))
    text = show(mean)
    return text if half is None else f"{text} ± {_as_precise(half, text)}"


def _as_precise(half: float, mean: str) -> str:
    """Write an interval with the decimals of its mean, unless it would vanish."""
    decimals = len(mean.partition(".")[2])
    text = f"{half:.{decimals}f}"
    return text if "e" not in mean and (float(text) or not half) else f"{half:.1g}"
