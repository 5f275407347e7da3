"""The pictures of a comparison of runs. Labels come from users: they are drawn without mathematics markup."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from fedsynth.output.figures import COLOURS, TEXT, legend, round_curve

Estimate = tuple[float, float | None]
"""A mean and the half width of its interval, None for a single run."""

_STYLES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D", "v")
_PANELS_PER_ROW = 3
_WIDE = 8.0
_MAX_LABEL_LENGTH = 40


def measure_dots(panels: Mapping[str, Mapping[str, tuple[Sequence[float], Estimate | None]]]) -> Figure:
    """Draw every run as a dot and the interval of every row as a bar, one panel per measure.

    Args:
        panels: Measure -> row label -> values of its runs, and their mean with half of its interval; None where the
            values may not be averaged. All panels have the same rows.
    """
    labels = list(next(iter(panels.values())))
    columns = min(_PANELS_PER_ROW, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(9.4, lines * (0.95 + 0.3 * len(labels))), layout=ConstrainedLayoutEngine(h_pad=0.1))
    grid = list(figure.subplots(lines, columns, squeeze=False).flat)
    for number, (axes, (name, rows)) in enumerate(zip(grid, panels.items(), strict=False)):
        for index, (values, estimate) in enumerate(rows.values()):
            _draw_row(axes, index, values, estimate)
        _dress(axes, name, labels, named=number % columns == 0)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    return figure


def round_lines(runs: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]], key: str) -> Figure:
    """Draw one metric against the round: one line per run, one colour per row.

    Args:
        runs: Row label -> the lines of ``metrics.jsonl`` of each of its runs.
        key: The metric.
    """
    figure = round_curve((), key)
    axes = figure.axes[0]
    for index, (label, tables) in enumerate(runs.items()):
        for number, rows in enumerate(tables):
            points = [(row["round"], row[key]) for row in rows if row.get(key) is not None]
            # matplotlib keeps names that begin with "_" out of the legend: a row is named once, and if it has lines.
            name = _cut(label) if number == 0 and points else "_"
            style = "o" + _STYLES[index // len(COLOURS) % len(_STYLES)]
            axes.plot(*np.reshape(points, (-1, 2)).T, style, color=_colour(index), lw=1.2, ms=2.5, label=name)
    legend(axes, loc="upper left", bbox_to_anchor=(0, -0.2), ncols=1 if max(map(len, runs)) > 40 else 2)
    return figure


def trade_off(panels: Mapping[str, Mapping[str, tuple[float | None, Sequence[float]]]], cost: str) -> Figure:
    """Draw quality against cost: one dot per row, the range of its runs as a bar, one panel per measure.

    Args:
        panels: Measure -> row label -> (cost, the measure of each of its runs); rows that lack either are left out.
            All panels have the same rows. A measure that spreads widely has a logarithmic axis.
        cost: Label of the cost axis, which is logarithmic and still shows zero.
    """
    figure = Figure(figsize=(4.7 * len(panels), 4.2), layout="constrained")
    grid = list(figure.subplots(1, len(panels), squeeze=False).flat)
    for axes, (name, rows) in zip(grid, panels.items(), strict=True):
        # Below the smallest positive cost the axis is linear, so that a method without cost is shown too.
        axes.set_xscale("symlog", linthresh=min((x for x, _ in rows.values() if x), default=1.0))
        for index, (label, (x, values)) in enumerate(rows.items()):
            if x is not None and values:
                mean = fmean(values)
                bar = [[mean - min(values)], [max(values) - mean]]
                # The space keeps names that begin with "_" in the legend.
                style = {"fmt": _MARKERS[index % len(_MARKERS)], "color": _colour(index), "label": f" {_cut(label)}"}
                axes.errorbar(x, mean, yerr=bar, capsize=3, **style)
        shown = [value for x, values in rows.values() if x is not None for value in values]
        # The largest would press the others against the axis.
        if shown and min(shown) > 0 and max(shown) / min(shown) > _WIDE:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.set_title(name, fontsize=10, color=TEXT)
        axes.set_xlabel(cost, fontsize=9, color=TEXT)
        axes.grid(color="#e5e5e5", lw=0.6)
        axes.tick_params(labelsize=9, colors=TEXT, length=0)
        axes.spines[["top", "right"]].set_visible(False)
    if grid[-1].has_data():
        legend(grid[-1])
    return figure


def _draw_row(axes: Axes, index: int, values: Sequence[float], estimate: Estimate | None) -> None:
    colour = _colour(index)
    if estimate is not None and estimate[1] is not None:
        axes.errorbar(estimate[0], index, xerr=estimate[1], color=colour, lw=1.6, capsize=4)
        axes.plot(estimate[0], index, "|", color=colour, ms=11, mew=2)
    axes.plot(values, [index] * len(values), "o", color=colour, ms=5, alpha=0.55, mew=0)


def _dress(axes: Axes, name: str, labels: Sequence[str], named: bool) -> None:
    axes.set_title(name, fontsize=10, color=TEXT)
    shown = [_cut(label) for label in labels] if named else [""] * len(labels)
    axes.set_yticks(range(len(labels)), shown, parse_math=False)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.grid(axis="x", color="#e5e5e5", lw=0.6)
    axes.tick_params(labelsize=9, colors=TEXT, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#bbbbbb")


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _cut(label: str) -> str:
    """Cut long labels in the middle: settings differ at the end."""
    half = _MAX_LABEL_LENGTH // 2
    return label if len(label) <= _MAX_LABEL_LENGTH else f"{label[:half]}…{label[1 - half :]}"
