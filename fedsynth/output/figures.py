"""The pictures of a run. Every function returns a matplotlib Figure and touches no global state.

Names come from users: they are drawn without mathematics markup, so that "$" is a dollar sign.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray
from PIL import Image

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]

PIXELS_PER_INCH = 100
_SHARPNESS = 2
_CELL = 48
_LARGEST_CELL = 96
GAP = 3
MARGIN = 0.1
LETTER = 0.075
TITLE_HEIGHT = 0.35
_PANEL_GAP = 0.3
_MISSING = 235
TEXT = "#333333"
# Okabe and Ito's colours, without the yellow that disappears on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_STYLES = ("-", "--", ":", "-.")
_MOST_NAMED_CURVES = 16
_CURVE_POINTS = 60
_LONGEST_NAME = 22
_MOST_NAMED = 50
_MOST_COLUMNS_WITH_NUMBERS = 25


def png_bytes(figure: Figure) -> bytes:
    """Render a figure as PNG, at twice its nominal 100 pixels per inch; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=PIXELS_PER_INCH * _SHARPNESS, metadata={"Software": None})
    return buffer.getvalue()


def image_grid(images: Images, labels: Labels, classes: Sequence[str], per_class: int) -> Figure:
    """Show the first images of every class, one class per row.

    Args:
        images: uint8 (N, H, W, C), C = 1 or 3; small ones are enlarged without smoothing.
        labels: int64 (N,), positions in ``classes``.
        classes: Names of the rows.
        per_class: Columns; grey squares fill up a class that has fewer.
    """
    return _panels([("", _canvas(images, labels, len(classes), per_class))], classes)


def real_beside_synthetic(
    real_images: Images,
    real_labels: Labels,
    synthetic_images: Images,
    synthetic_labels: Labels,
    classes: Sequence[str],
    per_class: int,
) -> Figure:
    """Show two grids of :func:`image_grid` side by side: real images on the left, synthetic ones on the right."""
    real = _canvas(real_images, real_labels, len(classes), per_class)
    synthetic = _canvas(synthetic_images, synthetic_labels, len(classes), per_class)
    return _panels([("real", real), ("synthetic", synthetic)], classes)


def label_distribution(counts: NDArray[np.int64], classes: Sequence[str], names: Sequence[str]) -> Figure:
    """Show how many images of each class each silo holds, as a table shaded by count.

    Args:
        counts: (K, C).
        classes: Class names, (C,).
        names: Silo names, (K,).
    """
    num_silos, num_classes = counts.shape
    width = min(max(0.55 * num_classes, 3.0), 9.0) + 1.8
    figure = Figure(figsize=(width, min(max(0.34 * num_silos, 0.8), 12.0) + 1.1), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(counts, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=max(int(counts.max()), 1)), aspect="auto")
    if num_classes <= _MOST_COLUMNS_WITH_NUMBERS and num_silos <= _MOST_NAMED:
        _annotate(axes, counts)
    silos = [f"{short(name)}  ({total:,})" for name, total in zip(names, counts.sum(1), strict=True)]
    _name_ticks(axes, classes, silos)
    axes.set_xlabel("class", color=TEXT)
    axes.set_ylabel("silo (images)", color=TEXT)
    return figure


def loss_curves(curves: Mapping[str, Sequence[tuple[int, float]]]) -> Figure:
    """Draw training losses against the step, one line per silo, on a logarithmic scale.

    Args:
        curves: Silo name to (step, loss); long curves are averaged over up to 60 stretches of steps.
    """
    figure, axes = _line_axes("training step", "loss (mean squared error of the noise)")
    named = len(curves) <= _MOST_NAMED_CURVES
    for number, (name, points) in enumerate(curves.items()):
        steps, losses = _thinned(points)
        style = _STYLES[number // len(COLOURS) % len(_STYLES)] if named else "-"
        # The space keeps names that begin with "_" in the legend.
        axes.plot(steps, losses, style, color=COLOURS[number % len(COLOURS)], lw=1.3, label=f" {short(name)}")
    if any(loss > 0 for points in curves.values() for _, loss in points):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    if curves and named:
        legend(axes)
    return figure


def round_curve(rows: Sequence[Mapping[str, Any]], key: str) -> Figure:
    """Draw one metric against the round.

    Args:
        rows: Lines of ``metrics.jsonl``; those without ``round`` or ``key`` are left out.
        key: The metric.
    """
    points = [(row["round"], row[key]) for row in rows if "round" in row and row.get(key) is not None]
    figure, axes = _line_axes("round", key.replace("-", " ").replace("_", " "))
    axes.plot([x for x, _ in points], [y for _, y in points], "o-", color=COLOURS[0], lw=1.3, ms=3)
    return figure


def _canvas(images: Images, labels: Labels, num_classes: int, per_class: int) -> Images:
    """Lay out the first ``per_class`` images of every class on one RGB picture, (height, width, 3)."""
    height, width = cell(images[0]).shape[:2]
    canvas = np.full((num_classes * (height + GAP) - GAP, per_class * (width + GAP) - GAP, 3), 255, np.uint8)
    for row in range(num_classes):
        chosen = np.flatnonzero(labels == row)[:per_class]
        for column in range(per_class):
            top, left = row * (height + GAP), column * (width + GAP)
            pixels = cell(images[chosen[column]]) if column < len(chosen) else _MISSING
            canvas[top : top + height, left : left + width] = pixels
    return canvas


def cell(image: Images) -> Images:
    """Bring an (H, W, C) image to a readable size in RGB: whole-number enlargement, smooth reduction."""
    rgb = np.broadcast_to(image, (*image.shape[:2], 3))
    largest = max(rgb.shape[:2])
    if largest > _LARGEST_CELL:
        height, width = (max(1, round(side * _LARGEST_CELL / largest)) for side in rgb.shape[:2])
        return np.asarray(Image.fromarray(np.ascontiguousarray(rgb)).resize((width, height)))
    factor = math.ceil(_CELL / largest)
    return rgb.repeat(factor, axis=0).repeat(factor, axis=1)


def _panels(panels: Sequence[tuple[str, Images]], row_names: Sequence[str]) -> Figure:
    """Place pictures side by side so that each of their pixels becomes the same whole number of pixels."""
    names = [short(name) for name in row_names]
    left = 2 * MARGIN + LETTER * max(map(len, names))
    top = TITLE_HEIGHT if any(title for title, _ in panels) else MARGIN
    sizes = [(picture.shape[1] / PIXELS_PER_INCH, picture.shape[0] / PIXELS_PER_INCH) for _, picture in panels]
    width = left + sum(w for w, _ in sizes) + _PANEL_GAP * (len(panels) - 1) + MARGIN
    height = top + max(h for _, h in sizes) + MARGIN
    figure = Figure(figsize=(width, height))
    for number, ((title, picture), (w, h)) in enumerate(zip(panels, sizes, strict=True)):
        axes = figure.add_axes((left / width, 1 - (top + h) / height, w / width, h / height))
        axes.imshow(picture, interpolation="nearest", aspect="auto")
        axes.set_title(title, fontsize=11, color=TEXT)
        name_rows(axes, names if number == 0 else (), picture.shape[0] / len(names))
        left += w + _PANEL_GAP
    return figure


def name_rows(axes: Axes, names: Sequence[str], row_height: float, row_pitch: float | None = None) -> None:
    """Name the rows of a picture on its left, without ticks, numbers and frame.

    Args:
        axes: Shows the picture.
        names: From the top; names of users must have been cut by :func:`short`.
        row_height: In pixels of the picture.
        row_pitch: From the top of one row to the top of the next; None: rows touch.
    """
    places = [row_height / 2 + row * (row_pitch or row_height) for row in range(len(names))]
    axes.set_xticks([])
    axes.set_yticks(places, names, fontsize=10, parse_math=False)
    axes.tick_params(length=0, colors=TEXT)
    axes.spines[:].set_visible(False)


def _name_ticks(axes: Axes, classes: Sequence[str], silos: Sequence[str]) -> None:
    """Name columns and rows; with too many to read, matplotlib's own sparse numbers stay."""
    if len(classes) <= _MOST_NAMED:
        names = [short(name) for name in classes]
        turn = 45 if max(map(len, names)) > 5 else 0
        axes.set_xticks(range(len(names)), names, rotation=turn, ha="right" if turn else "center", parse_math=False)
    if len(silos) <= _MOST_NAMED:
        axes.set_yticks(range(len(silos)), silos, parse_math=False)
    axes.tick_params(length=0, labelsize=9, colors=TEXT)
    axes.spines[:].set_visible(False)


def _annotate(axes: Axes, counts: NDArray[np.int64]) -> None:
    dark = counts > counts.max() * 0.4
    for row, column in np.argwhere(counts > 0):
        colour = "white" if dark[row, column] else TEXT
        axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", fontsize=8, color=colour)


def _line_axes(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.5, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x_label, color=TEXT)
    axes.set_ylabel(y_label, color=TEXT, parse_math=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.grid(color="#e5e5e5", lw=0.6)
    axes.tick_params(labelsize=9, colors=TEXT, length=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#bbbbbb")
    return figure, axes


def legend(axes: Axes, **kwargs: Any) -> None:
    """Add a frameless legend, to the right of the axes by default, whose names are drawn without mathematics."""
    placed = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5), "frameon": False, "fontsize": 8, **kwargs}
    for text in axes.legend(**placed).get_texts():
        text.set_parse_math(False)


def _thinned(points: Sequence[tuple[int, float]]) -> tuple[list[float], list[float]]:
    table = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    pieces = np.array_split(table, max(1, min(len(table), _CURVE_POINTS)))
    means = [piece.mean(axis=0) for piece in pieces if len(piece)]
    return [float(step) for step, _ in means], [float(loss) for _, loss in means]


def short(name: str) -> str:
    """Cut long names in the middle: numbered silos differ at the end."""
    text = " ".join(name.split())
    if len(text) <= _LONGEST_NAME:
        return text
    return f"{text[: _LONGEST_NAME // 2]}…{text[-(_LONGEST_NAME // 2 - 1) :]}"
