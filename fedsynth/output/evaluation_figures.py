"""Pictures of how a synthetic set relates to real images. As in :mod:`fedsynth.output.figures`: figures, no state."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import color_sequences
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba_array
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from fedsynth.output.figures import (
    COLOURS,
    LETTER,
    MARGIN,
    PIXELS_PER_INCH,
    TEXT,
    Images,
    cell,
    legend,
    name_rows,
    short,
)
from fedsynth.units import show

MOST_BARS = 20
"""Classes that :func:`per_class_bars` shows."""
_COLUMNS = 8
_COLUMN_GAP = 6
_CAPTION = 20
_TITLE_HEIGHT = 0.42
_ROWS = ("synthetic", "nearest training image", "nearest to that one")
_ALARM = "#c62828"
# Petroff's ten colours, chosen to stay apart for readers with deficient colour vision.
_CLASS_COLOURS = color_sequences["petroff10"]
_REAL, _SYNTHETIC = COLOURS[0], COLOURS[1]
_FULL_SIZE_POINTS = 1500
_PANELS_PER_ROW = 3
_BAR = "#8fb8dc"


@dataclass(frozen=True, eq=False)
class NearestImages:
    """Synthetic images beside the training images most like them.

    Attributes:
        synthetic: uint8 (n, H, W, C); up to 16 are readable.
        real: uint8 (n, H, W, C), of each the training image nearest to it.
        next_real: uint8 (n, H, W, C), the training image nearest to ``real``, itself left out.
        distances: float (n,), from ``synthetic`` to ``real``.
        next_distances: float (n,), from ``real`` to ``next_real``.
        space: Where distances are measured, e.g. ``pixels``.
        num_closest: The first so many are the closest pairs of the whole set, the others are drawn at random.
        copy_distance: A fresh real image comes so near to a training image once in twenty times; NaN if unknown.

    Raises:
        ValueError: The fields do not have the same n >= 1, or ``num_closest`` is outside 0 to n.
    """

    synthetic: NDArray[np.uint8]
    real: NDArray[np.uint8]
    next_real: NDArray[np.uint8]
    distances: NDArray[np.floating]
    next_distances: NDArray[np.floating]
    space: str
    num_closest: int
    copy_distance: float

    def __post_init__(self) -> None:
        arrays = (self.synthetic, self.real, self.next_real, self.distances, self.next_distances)
        sizes = [len(array) for array in arrays]
        if sizes[0] == 0 or len(set(sizes)) > 1 or not 0 <= self.num_closest <= sizes[0]:
            raise ValueError(f"nearest images: got {sizes} and num_closest = {self.num_closest}, want one n >= 1")


@dataclass(frozen=True, eq=False)
class Embedding:
    """Real and synthetic images as points of a plane (t-SNE).

    Attributes:
        points: float (N, 2).
        labels: int (N,), positions in the class names.
        synthetic: bool (N,), which of them are synthetic.
        space: Features whose neighbourhoods the plane keeps, e.g. ``pixels``.

    Raises:
        ValueError: The shapes do not agree.
    """

    points: NDArray[np.floating]
    labels: NDArray[np.integer]
    synthetic: NDArray[np.bool_]
    space: str

    def __post_init__(self) -> None:
        shapes = (self.points.shape, self.labels.shape, self.synthetic.shape)
        if shapes != ((len(self.labels), 2), (len(self.labels),), (len(self.labels),)):
            raise ValueError(f"embedding: got {shapes}, want points (N, 2), labels (N,) and synthetic (N,)")


def nearest_images(nearest: NearestImages) -> Figure:
    """Draw each synthetic image, under it the training image nearest to it, under that its own nearest neighbour.

    Distances stand between the images; that of a synthetic image is red and bold up to ``copy_distance``. The closest
    pairs come first, eight side by side.
    """
    blocks = [(title, chosen, _triples(nearest, chosen)) for title, chosen in _blocks(nearest)]
    left = 2 * MARGIN + LETTER * max(map(len, _ROWS))
    width = left + max(canvas.shape[1] for _, _, canvas in blocks) / PIXELS_PER_INCH + MARGIN
    height = sum(_TITLE_HEIGHT + canvas.shape[0] / PIXELS_PER_INCH for _, _, canvas in blocks) + MARGIN
    figure = Figure(figsize=(width, height))
    bottom = height
    for title, chosen, canvas in blocks:
        h, w = canvas.shape[0] / PIXELS_PER_INCH, canvas.shape[1] / PIXELS_PER_INCH
        bottom -= _TITLE_HEIGHT + h
        axes = figure.add_axes((left / width, bottom / height, w / width, h / height))
        axes.imshow(canvas, interpolation="nearest", aspect="auto")
        axes.set_title(title, fontsize=11, color=TEXT, loc="left")
        _caption(axes, nearest, chosen)
    return figure


def embedding_scatter(embedding: Embedding, classes: Sequence[str]) -> Figure:
    """Draw real images as pale rings and synthetic ones as filled points.

    Args:
        embedding: The points.
        classes: Class names; up to ten have a colour each; with more, colours show only which images are synthetic.
    """
    figure = Figure(figsize=(9.2, 6.2), layout="constrained")
    axes = figure.add_subplot()
    colours = _point_colours(embedding, len(classes))
    made = embedding.synthetic
    scale = min(1.0, _FULL_SIZE_POINTS / len(made))
    x, y = embedding.points.T
    rings: dict[str, Any] = {"facecolors": "none", "edgecolors": colours[~made], "linewidths": 0.9, "alpha": 0.55}
    axes.scatter(x[~made], y[~made], s=30 * scale, **rings)
    axes.scatter(x[made], y[made], s=10 * scale, facecolors=colours[made], linewidths=0)
    if len(classes) <= len(_CLASS_COLOURS):
        _name_groups(axes, embedding, classes)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color("#dddddd")
    legend(axes, handles=_legend_marks(classes), fontsize=9)
    return figure


def per_class_bars(
    values: Mapping[str, Mapping[str, float]], reference: Mapping[str, Mapping[str, float]], classes: Sequence[str]
) -> Figure:
    """Draw one panel of bars per measure, up to three side by side, with every class on the same line in all of them.

    Args:
        values: Measure -> class name -> value of the synthetic set; a class may be absent.
        reference: The same for real images, drawn as a line across the bar; measures and classes may be absent.
        classes: Class names from the top; the first 20 are shown.
    """
    names = list(classes[:MOST_BARS])
    columns = min(len(values), _PANELS_PER_ROW)
    rows = math.ceil(len(values) / columns)
    width = 0.3 + LETTER * max(len(short(name)) for name in names) + 2.6 * columns
    figure = Figure(figsize=(max(width, 4.0), rows * (0.24 * len(names) + 0.75) + 0.35), layout="constrained")
    for number, (measure, of_class) in enumerate(values.items()):
        axes = figure.add_subplot(rows, columns, number + 1)
        _bars(axes, _in_order(of_class, names), _in_order(reference.get(measure, {}), names))
        axes.set_title(short(measure), fontsize=10, color=TEXT, loc="left", parse_math=False)
        axes.set_yticks(range(len(names)), [short(name) for name in names], parse_math=False)
        axes.tick_params(labelleft=number % columns == 0)
    figure.legend(handles=_bar_marks(reference), loc="outside upper left", ncols=2, frameon=False, fontsize=9)
    return figure


def _blocks(nearest: NearestImages) -> list[tuple[str, range]]:
    """Split the triples into titled lines of up to eight."""
    parts = [
        ("The closest pairs of the whole set", range(nearest.num_closest)),
        ("Drawn at random", range(nearest.num_closest, len(nearest.synthetic))),
    ]
    starts = [(title, part, start) for title, part in parts for start in range(0, len(part), _COLUMNS)]
    return [("" if start else title, part[start : start + _COLUMNS]) for title, part, start in starts]


def _triples(nearest: NearestImages, chosen: range) -> Images:
    """Lay out the three rows of a block on one RGB picture, with room for a caption between them."""
    height, width = cell(nearest.synthetic[0]).shape[:2]
    pitch, step = height + _CAPTION, width + _COLUMN_GAP
    canvas = np.full((3 * pitch - _CAPTION, len(chosen) * step - _COLUMN_GAP, 3), 255, np.uint8)
    for row, images in enumerate((nearest.synthetic, nearest.real, nearest.next_real)):
        for column, index in enumerate(chosen):
            top, left = row * pitch, column * step
            canvas[top : top + height, left : left + width] = cell(images[index])
    return canvas


def _caption(axes: Axes, nearest: NearestImages, chosen: range) -> None:
    """Name the rows of a block and write the distances between them."""
    height, width = cell(nearest.synthetic[0]).shape[:2]
    name_rows(axes, _ROWS, height, height + _CAPTION)
    for column, index in enumerate(chosen):
        x = column * (width + _COLUMN_GAP) + width / 2 - 0.5
        near, usual = nearest.distances[index], nearest.next_distances[index]
        alarm: dict[str, Any] = (
            {"color": _ALARM, "weight": "bold"} if near <= nearest.copy_distance else {"color": TEXT}
        )
        for row, (distance, look) in enumerate([(near, alarm), (usual, {"color": TEXT})]):
            y = (row + 1) * (height + _CAPTION) - _CAPTION / 2 - 0.5
            axes.text(x, y, show(float(distance)), ha="center", va="center_baseline", fontsize=9, **look)


def _point_colours(embedding: Embedding, num_classes: int) -> NDArray[np.float64]:
    """Return RGBA (N, 4)."""
    if num_classes <= len(_CLASS_COLOURS):
        palette, chosen = to_rgba_array(_CLASS_COLOURS), embedding.labels
    else:
        palette, chosen = to_rgba_array([_REAL, _SYNTHETIC]), embedding.synthetic.astype(np.int64)
    return np.asarray(palette[chosen], dtype=np.float64)


def _name_groups(axes: Axes, embedding: Embedding, classes: Sequence[str]) -> None:
    """Write each class's name on its most central point: ten colours alone are hard to tell apart."""
    for label, name in enumerate(classes):
        points = embedding.points[embedding.labels == label]
        if len(points):
            x, y = points[np.square(points - np.median(points, axis=0)).sum(axis=1).argmin()]
            text = axes.text(x, y, short(name), ha="center", va="center", fontsize=11, color=TEXT, parse_math=False)
            text.set_path_effects([withStroke(linewidth=3, foreground="white")])


def _legend_marks(classes: Sequence[str]) -> list[Line2D]:
    by_class = len(classes) <= len(_CLASS_COLOURS)
    real, made = (TEXT, TEXT) if by_class else (_REAL, _SYNTHETIC)
    marks = [
        _mark("real image", markerfacecolor="none", markeredgecolor=real, markersize=6),
        _mark("synthetic image", markerfacecolor=made, markeredgewidth=0, markersize=4.5),
    ]
    if by_class:
        named = zip(classes, _CLASS_COLOURS, strict=False)
        marks += [_mark(short(name), marker="s", color=colour, markersize=6) for name, colour in named]
    return marks


def _mark(label: str, **look: Any) -> Line2D:
    # The space keeps names that begin with "_" in the legend.
    return Line2D([], [], linestyle="", label=f" {label}", **{"marker": "o", **look})


def _bar_marks(reference: Mapping[str, Mapping[str, float]]) -> list[Line2D]:
    marks = [_mark("synthetic images", marker="s", color=_BAR, markersize=8)]
    if any(reference.values()):
        marks.append(_mark("real images", marker="|", color=TEXT, markersize=10, markeredgewidth=2))
    return marks


def _in_order(of_class: Mapping[str, float], names: Sequence[str]) -> NDArray[np.float64]:
    return np.array([of_class.get(name, np.nan) for name in names], dtype=np.float64)


def _bars(axes: Axes, values: NDArray[np.float64], reference: NDArray[np.float64]) -> None:
    """Draw one measure with its numbers in a column on the right; NaN is no bar and a dash."""
    lines = np.arange(len(values))
    known, marked = np.isfinite(values), np.isfinite(reference)
    axes.barh(lines[known], values[known], height=0.68, color=_BAR)
    axes.vlines(reference[marked], lines[marked] - 0.44, lines[marked] + 0.44, color=TEXT, lw=2)
    for line, value in enumerate(values):
        number = show(float(value)) if known[line] else "–"
        axes.text(1.02, line, number, transform=axes.get_yaxis_transform(), fontsize=8, color=TEXT, va="center")
    extent = [0.0, *values[known], *reference[marked]]
    axes.set_xlim(min(extent), max(extent) * 1.03 if max(extent) > 0 else (1.0 if min(extent) == 0 else 0.0))
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axes.grid(axis="x", color="#e5e5e5", lw=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, colors=TEXT, length=0)
    axes.spines[:].set_visible(False)
