from __future__ import annotations

import io
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from fedsynth.output import (
    image_grid,
    label_distribution,
    loss_curves,
    png_bytes,
    real_beside_synthetic,
    round_curve,
)

NASTY = "$x^{ <b>$ _y"


def pixels(figure: Figure) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(png_bytes(figure))).convert("RGB"))


def drawn(figure: Figure, panel: int = 0) -> NDArray[np.uint8]:
    return np.asarray(figure.axes[panel].images[0].get_array())


def tick_names(figure: Figure, axis: str = "y") -> list[str]:
    return [label.get_text() for label in getattr(figure.axes[0], f"get_{axis}ticklabels")()]


@pytest.fixture
def images() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (7, 8, 8, 1), dtype=np.uint8)


def test_the_grid_shows_the_first_of_each_class_enlarged(images: NDArray[np.uint8]) -> None:
    labels = np.array([1, 0, 1, 1, 0, 1, 0])
    canvas = drawn(image_grid(images, labels, ["a", "b"], per_class=3))
    for row, column, index in [(0, 0, 1), (0, 1, 4), (0, 2, 6), (1, 0, 0), (1, 1, 2), (1, 2, 3)]:
        top, left = row * 51, column * 51
        tile = canvas[top : top + 48, left : left + 48]
        for channel in range(3):
            assert np.array_equal(tile[..., channel], np.kron(images[index, ..., 0], np.ones((6, 6), np.uint8)))


def test_missing_images_leave_grey_squares(images: NDArray[np.uint8]) -> None:
    canvas = drawn(image_grid(images, np.zeros(7, np.int64), ["a", "b"], per_class=2))
    assert (canvas[51:, :48] == 235).all()


def test_every_pixel_of_a_grid_is_rendered_as_a_whole_square(images: NDArray[np.uint8]) -> None:
    figure = image_grid(images, np.zeros(7, np.int64), ["a"], per_class=7)
    canvas, page = drawn(figure), pixels(figure)
    doubled = canvas.repeat(2, axis=0).repeat(2, axis=1)
    height, width = doubled.shape[:2]
    places = [
        (top, left)
        for top in range(page.shape[0] - height + 1)
        for left in range(page.shape[1] - width + 1)
        if np.array_equal(page[top, left : left + width], doubled[0])
    ]
    assert any(np.array_equal(page[t : t + height, l : l + width], doubled) for t, l in places)  # noqa: E741


def test_large_and_oblong_images_are_reduced() -> None:
    images = np.full((1, 400, 200, 3), 77, np.uint8)
    canvas = drawn(image_grid(images, np.zeros(1, np.int64), ["a"], per_class=1))
    assert canvas.shape == (96, 48, 3)
    assert (canvas == 77).all()


def test_real_stands_left_of_synthetic(images: NDArray[np.uint8]) -> None:
    labels = np.zeros(7, np.int64)
    figure = real_beside_synthetic(images, labels, 255 - images, labels, [NASTY], per_class=2)
    assert [axes.get_title() for axes in figure.axes] == ["real", "synthetic"]
    left, right = (axes.get_position() for axes in figure.axes)
    assert left.x1 < right.x0
    assert np.array_equal(drawn(figure, 0)[:, :48], 255 - drawn(figure, 1)[:, :48])
    assert tick_names(figure) == [NASTY]
    assert pixels(figure).std() > 0


def test_label_distribution_writes_every_count() -> None:
    counts = np.array([[3, 0, 40], [0, 7, 1200]])
    figure = label_distribution(counts, ["a", NASTY, "c"], ["clinic", NASTY])
    assert np.array_equal(drawn(figure), counts)
    written = {(text.get_position(), text.get_text()) for text in figure.axes[0].texts}
    assert written == {((0, 0), "3"), ((2, 0), "40"), ((1, 1), "7"), ((2, 1), "1200")}
    assert tick_names(figure) == ["clinic  (43)", f"{NASTY}  (1,207)"]
    assert tick_names(figure, "x") == ["a", NASTY, "c"]
    assert pixels(figure).std() > 0


def test_a_large_label_distribution_fits_the_page() -> None:
    names = [str(number) for number in range(200)]
    page = pixels(label_distribution(np.zeros((120, 200), np.int64), names, names[:120]))
    assert max(page.shape) < 3000


def test_loss_curves_keep_short_curves_and_average_long_ones() -> None:
    long = [(step, float(step)) for step in range(1, 601)]
    figure = loss_curves({"a": [(1, 4.0), (2, 1.0)], "_b": long})
    short_line, long_line = figure.axes[0].lines
    assert np.asarray(short_line.get_xydata()).tolist() == [[1, 4], [2, 1]]
    assert np.allclose(long_line.get_ydata(), np.arange(1, 601).reshape(60, 10).mean(axis=1))
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text().strip() for text in legend.get_texts()] == ["a", "_b"]
    assert figure.axes[0].get_yscale() == "log"


@pytest.mark.parametrize("curves", [{NASTY: []}, {NASTY: [(1, float("nan")), (2, 0.5)]}])
def test_odd_curves_can_be_drawn(curves: dict[str, list[tuple[int, float]]]) -> None:
    assert pixels(loss_curves(curves)).std() > 0


def test_round_curve_skips_rows_without_the_metric() -> None:
    rows: list[dict[str, Any]] = [{"round": 1, "loss": 2.0}, {"round": 2}, {"loss": 9.0}]
    rows += [{"round": 3, "loss": None}, {"round": 4, "loss": 1}]
    figure = round_curve(rows, "loss")
    assert np.asarray(figure.axes[0].lines[0].get_xydata()).tolist() == [[1, 2], [4, 1]]
    assert round_curve(rows, "mean-weight_x").axes[0].get_ylabel() == "mean weight x"
    assert pixels(round_curve(rows, NASTY)).std() > 0


def test_long_names_keep_their_ends() -> None:
    names = ["University hospital of somewhere, site 1", "University hospital of somewhere, site 2"]
    figure = label_distribution(np.ones((2, 1), np.int64), ["a"], names)
    assert tick_names(figure) == ["University …re, site 1  (1)", "University …re, site 2  (1)"]


def test_pictures_are_deterministic_and_leave_no_global_figure(images: NDArray[np.uint8]) -> None:
    before = plt.get_fignums()
    first, second = (png_bytes(image_grid(images, np.zeros(7, np.int64), ["a"], 4)) for _ in range(2))
    assert first == second
    assert plt.get_fignums() == before
