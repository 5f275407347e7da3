from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from fedsynth.output import Embedding, NearestImages, embedding_scatter, nearest_images, per_class_bars, png_bytes

NASTY = "$x^{ <b>$ _y"


def pixels(figure: Figure) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(png_bytes(figure))).convert("RGB"))


def written(figure: Figure, panel: int = 0) -> list[str]:
    return [text.get_text() for text in figure.axes[panel].texts]


@pytest.fixture
def nearest() -> NearestImages:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 11, 8, 8, 1), dtype=np.uint8)
    far = np.arange(11) + 1.5
    return NearestImages(*images, far - (far < 4), far, space="pixels", num_closest=9, copy_distance=2.5)


@pytest.fixture
def embedding() -> Embedding:
    points = np.random.default_rng(0).normal(size=(60, 2))
    return Embedding(points, np.arange(60) % 3, np.arange(60) >= 40, "pixels")


def test_a_column_holds_an_image_its_neighbour_and_the_neighbours_neighbour(nearest: NearestImages) -> None:
    figure = nearest_images(nearest)
    canvas = np.asarray(figure.axes[0].images[0].get_array())
    for row, images in enumerate((nearest.synthetic, nearest.real, nearest.next_real)):
        for column in range(8):
            tile = canvas[row * 68 : row * 68 + 48, column * 54 : column * 54 + 48]
            assert np.array_equal(tile[..., 1], np.kron(images[column, ..., 0], np.ones((6, 6), np.uint8)))
    assert pixels(figure).std() > 0


def test_the_closest_pairs_come_first_eight_a_line(nearest: NearestImages) -> None:
    figure = nearest_images(nearest)
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "The closest pairs of the whole set",
        "",
        "Drawn at random",
    ]
    assert [len(axes.texts) // 2 for axes in figure.axes] == [8, 1, 2]
    assert written(figure, 2) == ["10.5", "10.5", "11.5", "11.5"]
    tops = [axes.get_position().y0 for axes in figure.axes]
    assert tops == sorted(tops, reverse=True)


def test_only_distances_up_to_that_of_a_copy_are_red(nearest: NearestImages) -> None:
    texts = nearest_images(nearest).axes[0].texts
    assert [text.get_text() for text in texts[:4]] == ["0.500", "1.50", "1.50", "2.50"]
    above, below = texts[::2], texts[1::2]
    assert [text.get_weight() == "bold" for text in above] == [True] * 3 + [False] * 5
    assert len({text.get_color() for text in above[:3]} - {text.get_color() for text in (*above[3:], *below)}) == 1


def test_fields_that_do_not_fit_are_refused(nearest: NearestImages, embedding: Embedding) -> None:
    with pytest.raises(ValueError, match="num_closest = 12"):
        replace(nearest, num_closest=12)
    with pytest.raises(ValueError, match="want one n >= 1"):
        replace(nearest, distances=nearest.distances[1:])
    with pytest.raises(ValueError, match="points"):
        replace(embedding, labels=embedding.labels[1:])


def test_each_class_has_a_colour_rings_are_real_and_points_synthetic(embedding: Embedding) -> None:
    figure = embedding_scatter(embedding, ["a", NASTY, "_c"])
    rings, points = figure.axes[0].collections
    assert np.allclose(np.asarray(rings.get_offsets()), embedding.points[:40])
    assert np.allclose(np.asarray(points.get_offsets()), embedding.points[40:])
    assert len(rings.get_facecolor()) == 0
    for label in range(3):
        ring = rings.get_edgecolor()[embedding.labels[:40] == label, :3]
        point = points.get_facecolor()[embedding.labels[40:] == label, :3]
        assert len(np.unique(np.concatenate([ring, point]), axis=0)) == 1
    assert len(np.unique(points.get_facecolor(), axis=0)) == 3
    legend = figure.axes[0].get_legend()
    assert legend is not None
    names = [text.get_text().strip() for text in legend.get_texts()]
    assert names == ["real image", "synthetic image", "a", NASTY, "_c"]
    assert pixels(figure).std() > 0


def test_class_names_stand_on_a_point_of_their_class(embedding: Embedding) -> None:
    texts = embedding_scatter(embedding, ["a", "b", "c", "absent"]).axes[0].texts
    assert [text.get_text() for text in texts] == ["a", "b", "c"]
    for label, text in enumerate(texts):
        assert np.isclose(embedding.points[embedding.labels == label], text.get_position()).all(axis=1).any()


def test_of_many_classes_only_real_and_synthetic_are_told_apart(embedding: Embedding) -> None:
    axes = embedding_scatter(embedding, [str(label) for label in range(11)]).axes[0]
    rings, points = axes.collections
    colours = [np.unique(rings.get_edgecolor(), axis=0), np.unique(points.get_facecolor(), axis=0)]
    assert [len(colour) for colour in colours] == [1, 1]
    assert not np.allclose(colours[0][0, :3], colours[1][0, :3])
    assert len(axes.texts) == 0
    legend = axes.get_legend()
    assert legend is not None
    assert len(legend.get_texts()) == 2


def test_bars_marks_and_numbers_of_each_class() -> None:
    values = {"recall": {"b": 0.5, "a": 0.25}, NASTY: {"a": 30.0, "b": float("nan"), NASTY: 12.0}}
    figure = per_class_bars(values, {"recall": {"a": 0.75}}, ["a", "b", NASTY])
    first, second = figure.axes
    bars = [(bar.get_y() + bar.get_height() / 2, bar.get_width()) for bar in first.patches]
    assert np.allclose(bars, [(0, 0.25), (1, 0.5)])
    assert [segment.tolist() for segment in first.collections[0].get_segments()] == [[[0.75, -0.44], [0.75, 0.44]]]
    assert second.collections[0].get_segments() == []
    assert written(figure, 0) == ["0.250", "0.500", "–"]
    assert written(figure, 1) == ["30.0", "–", "12.0"]
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["recall", NASTY]
    assert [label.get_text() for label in first.get_yticklabels()] == ["a", "b", NASTY]
    assert [axes.get_ylim() for axes in figure.axes] == [(2.5, -0.5)] * 2
    assert pixels(figure).std() > 0


def test_six_measures_of_many_long_classes_fit_the_page() -> None:
    names = [f"University hospital of somewhere, finding {number}" for number in range(30)]
    values = {f"measure {number}": dict.fromkeys(names, 0.5) for number in range(6)}
    figure = per_class_bars(values, values, names)
    assert len(figure.axes[0].get_yticks()) == 20
    page = pixels(figure)
    assert page.shape[1] <= 2 * 1000
    assert page.shape[0] <= 2 * 1300


@pytest.mark.parametrize("value", [-2.0, float("inf")])
def test_odd_values_can_be_drawn(value: float) -> None:
    figure = per_class_bars({"m": {"a": value}}, {}, ["a"])
    assert pixels(figure).std() > 0
    low, high = figure.axes[0].get_xlim()
    assert low < high
