from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from parsed_page import ParsedPage
from PIL import Image

from fedsynth.errors import UserError
from fedsynth.output import SyntheticDataset, png_bytes, write_dataset
from fedsynth.output.comparison import (
    ComparisonCell,
    ComparisonContent,
    ComparisonTable,
    read_samples,
    shared_metrics,
    write_comparison,
)
from fedsynth.output.comparison_figures import measure_dots, round_lines, trade_off

ATTACK = '<script>alert("$x_$")</script>'
ROUNDS = {
    "dfd": [[{"round": 1, "loss": 3.0}, {"round": 2, "loss": 1.0}], [{"round": 1, "loss": 2.0}]],
    "fedavg": [[{"round": 1, "loss": 2.5, "steps": 4}]],
}


def dataset(classes: tuple[str, ...], shades: list[int], labels: list[int]) -> SyntheticDataset:
    images = np.array(shades, np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 1), np.uint8)
    return SyntheticDataset(images, np.array(labels, dtype=np.int64), classes, {})


@pytest.fixture
def content() -> ComparisonContent:
    return ComparisonContent(
        title="Two runs",
        lead="All on digits.",
        runs=[{"row": "dfd", "seed": 0, "folder": ATTACK}, {"row": "fedavg", "seed": 1, "folder": "b"}],
        tables=[
            ComparisonTable(
                "Likeness",
                ["recall"],
                {"dfd": [ComparisonCell("0.9 ± 0.1", best=True)], "fedavg": [ComparisonCell("0.1 ± 0.1")]},
            )
        ],
        warnings=["Beware."],
        dots={"recall": {"dfd": ([0.8, 1.0], (0.9, 0.1)), "fedavg": ([0.1], None)}},
        rounds=ROUNDS,
        samples={
            "dfd": ("seed 0", dataset(("a", ATTACK), [10, 200], [0, 1])),
            "fedavg": ("seed 1", dataset((ATTACK, "a"), [200, 10], [0, 1])),
        },
        settings={"alpha": {"dfd": 0.1, "fedavg": 1.0}},
        filled_in={"prior": {"dfd": "class", "fedavg": "auto"}},
    )


def test_page_holds_everything_and_runs_nothing(content: ComparisonContent, tmp_path: Path) -> None:
    write_comparison(tmp_path / "c.html", content)
    page = ParsedPage(tmp_path / "c.html")
    for text in (
        "Two runs",
        "All on digits.",
        "Beware.",
        "Likeness",
        "0.9 ± 0.1",
        "0.1 ± 0.1",
        "alpha",
        "0.1",
        "class",
    ):
        assert text in page.text
    assert any(ATTACK in text for text in page.text)
    page.check_sealed()
    assert len(page.pictures()) == 4
    # Whatever the order of a run's classes, the picture has the same rows.
    first, second = (np.asarray(Image.open(tmp_path / "c-figures" / f"images-{n}.png")) for n in (1, 2))
    assert np.array_equal(first, second)
    assert page.headings() == ["warnings", "measures", "images", "rounds", "settings", "runs"]


def test_a_bare_comparison_leaves_out_what_is_missing(content: ComparisonContent, tmp_path: Path) -> None:
    bare = ComparisonContent("T", "L", content.runs, content.tables)
    write_comparison(tmp_path / "c.html", bare)
    page = ParsedPage(tmp_path / "c.html")
    assert page.headings() == ["measures", "runs"]


def test_pictures_of_an_earlier_comparison_go(content: ComparisonContent, tmp_path: Path) -> None:
    write_comparison(tmp_path / "c.html", content)
    (tmp_path / "c-figures" / "mine.png").write_text("")
    samples = {"dfd": (content.samples or {})["dfd"]}
    write_comparison(tmp_path / "c.html", replace(content, samples=samples, rounds=None))
    left = sorted(path.name for path in (tmp_path / "c-figures").iterdir())
    assert left == ["images-1.png", "measures.png", "mine.png"]


def test_what_is_no_file_stays(content: ComparisonContent, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="it is a folder"):
        write_comparison(tmp_path, content)
    (tmp_path / "c-figures").write_text("mine")
    with pytest.raises(UserError, match="a file stands where a folder is needed"):
        write_comparison(tmp_path / "c.html", content)
    assert (tmp_path / "c-figures").read_text() == "mine"
    assert not (tmp_path / "c.html").exists()


def test_silos_give_images_in_turn(tmp_path: Path) -> None:
    write_dataset(dataset(("a", "b"), [1, 2, 3], [0, 0, 1]), tmp_path / "synthetic" / "silo-0")
    write_dataset(dataset(("a", "b"), [4, 5], [1, 1]), tmp_path / "synthetic" / "silo-1")
    together, sets = read_samples(tmp_path / "synthetic")
    assert sets == 2
    assert together.images[:, 0, 0, 0].tolist() == [1, 4, 2, 5, 3]
    assert together.labels.tolist() == [0, 1, 0, 1, 1]


def test_one_dataset_is_read_as_it_is(tmp_path: Path) -> None:
    write_dataset(dataset(("a", "b"), [1, 2, 3], [0, 0, 1]), tmp_path / "synthetic")
    alone, sets = read_samples(tmp_path / "synthetic")
    assert (alone.images[:, 0, 0, 0].tolist(), sets) == ([1, 2, 3], 1)
    with pytest.raises(UserError, match="not a dataset"):
        read_samples(tmp_path / "nowhere")


def test_only_metrics_that_rows_share_and_that_vary_are_drawn() -> None:
    first = [
        {"round": n, "loss": n, "experts": n, "silos": 3, "steps": n, "bytes-up": n, "done": n > 1} for n in (1, 2)
    ]
    second = [{"round": 1, "loss": 5.0, "silos": 3, "steps": 1, "bytes-up": 2, "note": "late", "done": True}]
    assert shared_metrics({"dfd": [first], "fedavg": [second]}) == ["loss"]
    assert shared_metrics({"dfd": [first, first]}) == ["loss", "experts"]
    # A single round each makes points, no curve.
    assert shared_metrics({"pooled": [second], "local": [[{"round": 1, "loss": 4.0}]]}) == []


def test_a_line_is_a_run_and_a_colour_a_row() -> None:
    axes = round_lines({**ROUNDS, "pooled": [[{"round": 1}]]}, "loss").axes[0]
    lines = [line for line in axes.lines if len(line.get_xdata())]
    assert [list(line.get_ydata()) for line in lines] == [[3.0, 1.0], [2.0], [2.5]]
    colours = [to_hex(line.get_color()) for line in lines]
    assert colours[0] == colours[1] != colours[2]
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["dfd", "fedavg"]


def test_dots_show_every_run_and_the_interval() -> None:
    rows = {"a": ([1.0, 3.0], (2.0, 0.5)), ATTACK: ([4.0], (4.0, None)), "c": ([], None)}
    figure = measure_dots({f"m{n}": rows for n in range(4)})
    axes = figure.axes[0]
    dots = [line.get_xdata() for line in axes.lines if line.get_marker() == "o"]
    assert [list(values) for values in dots] == [[1.0, 3.0], [4.0], []]
    (bar,) = axes.collections
    assert bar.get_segments()[0][:, 0].tolist() == [1.5, 2.5]
    assert [part.get_visible() for part in figure.axes] == [True] * 4 + [False] * 2
    Image.open(io.BytesIO(png_bytes(figure))).verify()


@pytest.mark.parametrize(("largest", "scale"), [(12.0, "linear"), (150.0, "log")])
def test_measures_that_spread_widely_have_a_logarithmic_axis(largest: float, scale: str) -> None:
    rows = {"a": (10.0, [4.0, 5.0, 9.0]), "b": (1000.0, [largest]), "c": (None, [9000.0]), "d": (5.0, [])}
    axes = trade_off({"FD": rows}, "bytes").axes[0]
    assert axes.get_yscale() == scale
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines if line.get_marker() in "os"] == [
        (10.0, 6.0),
        (1000.0, largest),
    ]
    bars = [segment[:, 1].tolist() for bar in axes.collections for segment in bar.get_segments()]
    assert bars == [[4.0, 9.0], [largest, largest]]
