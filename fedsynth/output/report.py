"""One self-contained page about a run, for readers who have never seen the project."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fedsynth.evaluation import Evaluation
from fedsynth.output.dataset_card import limits_of
from fedsynth.output.evaluation_figures import (
    MOST_BARS,
    Embedding,
    NearestImages,
    embedding_scatter,
    nearest_images,
    per_class_bars,
)
from fedsynth.output.figures import (
    image_grid,
    label_distribution,
    loss_curves,
    real_beside_synthetic,
    round_curve,
)
from fedsynth.output.html_page import Picture, document, render, rendered, write_page
from fedsynth.output.report_table import ReportTable
from fedsynth.output.report_template import BODY
from fedsynth.progress import duration
from fedsynth.units import column_names, human_bytes, show

_PER_CLASS = 8
_MOST_CLASSES = 20
_COMPARED = ("synthetic", "generator", "real")
_SHOWN_PER_CLASS = ("precision", "coverage")
_COST_LABELS = {
    "bytes-up": "sent by the silos to the server",
    "bytes-down": "sent by the server to the silos",
    "client-seconds": "work of all silos, added up",
    "wall-seconds": "from start to the finished images",
    "start-seconds": "until the silos were met",
    "training-seconds": "training of the silos' own models",
    "rounds-seconds": "rounds",
    "sampling-seconds": "from the last round to the dataset on disk",
    "generator-seconds": "training of the generator",
    "evaluation-seconds": "measuring",
}


@dataclass(frozen=True, eq=False)
class ReportContent:
    """Everything the page shows. All text is plain text; what is empty or None is left out of the page.

    Attributes:
        title: Headline, e.g. ``DfD on digits, ten silos``.
        explanation: One sentence: what the reader sees and how it was made.
        classes: Class names.
        synthetic_images: uint8 (N, H, W, C).
        synthetic_labels: int64 (N,), positions in ``classes``.
        verdict: What to do with the images and models, in one sentence; see :mod:`fedsynth.output.verdict`.
        headline: The few numbers that matter, label to value.
        results: Measure to columns, e.g. ``{"accuracy": {"synthetic": .93, "real data": .97, "better": "higher",
            "measured in": "features of ...", "N": 360}}``. Every row should name its feature space and N.
        result_groups: A measure of ``results`` -> heading of the rows that start with it.
        meanings: A measure -> what it says, in a few plain words.
        per_class: Measure -> class name -> value of the synthetic set; a class may be absent.
        per_class_reference: The same for real images, where known.
        nearest: Synthetic images beside training images; None where real images may not leave the silos.
        embedding: Real and synthetic images in a plane.
        real_images: uint8 (M, H, W, C); None where real images may not leave the silos.
        real_labels: int64 (M,).
        silos: One mapping per silo, column to value.
        silo_names: Row names of ``label_counts``.
        label_counts: int64 (K, C), images of each class in each silo.
        losses: Silo name to (step, loss).
        rounds: Lines of ``metrics.jsonl``.
        round_keys: The metrics of ``rounds`` to draw.
        round_meanings: A metric of ``rounds`` -> what its curve says, in a sentence.
        cost: ``rounds``, ``bytes-up``, ``bytes-down``, ``client-seconds``, ``wall-seconds`` or other labels, to
            numbers; shown in human units where the label speaks of bytes or seconds.
        origin: When, of what and with what the run was made: label to text.
        command: That makes the run again.
        settings: Every setting of the run, resolved.
        resolved: The settings whose value the program chose.
        tables: What only some runs have.
        limits: Limits of this run, added to those of all synthetic images.
        privacy: What is guaranteed of their privacy, in sentences; empty: nothing.
    """

    title: str
    explanation: str
    classes: Sequence[str]
    synthetic_images: NDArray[np.uint8]
    synthetic_labels: NDArray[np.int64]
    headline: Mapping[str, Any]
    results: Mapping[str, Mapping[str, Any]]
    verdict: str = ""
    result_groups: Mapping[str, str] = field(default_factory=dict)
    meanings: Mapping[str, str] = field(default_factory=dict)
    per_class: Mapping[str, Mapping[str, float]] | None = None
    per_class_reference: Mapping[str, Mapping[str, float]] | None = None
    nearest: NearestImages | None = None
    embedding: Embedding | None = None
    real_images: NDArray[np.uint8] | None = None
    real_labels: NDArray[np.int64] | None = None
    silos: Sequence[Mapping[str, Any]] = ()
    silo_names: Sequence[str] = ()
    label_counts: NDArray[np.int64] | None = None
    losses: Mapping[str, Sequence[tuple[int, float]]] | None = None
    rounds: Sequence[Mapping[str, Any]] = ()
    round_keys: Sequence[str] = ()
    round_meanings: Mapping[str, str] = field(default_factory=dict)
    cost: Mapping[str, float] | None = None
    origin: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    settings: Mapping[str, Any] | None = None
    resolved: Collection[str] = ()
    tables: Sequence[ReportTable] = ()
    limits: Sequence[str] = ()
    privacy: Sequence[str] = ()


def write_report(path: Path, content: ReportContent) -> None:
    """Write the page to ``path`` and its pictures, as PNG, to ``figures/`` beside it.

    The page carries its pictures and style inside, runs no script and asks for nothing over the network.

    Raises:
        UserError: The folder cannot be written.
    """
    pictures = {name: rendered(figure) for name, figure in _figures(content).items()}
    page = _render(content, pictures)
    write_page(path, page, pictures, path.parent / "figures")


def evaluation_parts(evaluation: Evaluation) -> dict[str, Any]:
    """Return fields of :class:`ReportContent` by name: bars per class, and pictures if the evaluation has any."""
    names = (f"accuracy-{evaluation.main_classifier}", *_SHOWN_PER_CLASS)
    parts: dict[str, Any] = {}
    for field_name, measures in (
        ("per_class", evaluation.per_class()),
        ("per_class_reference", evaluation.real_per_class()),
    ):
        parts[field_name] = {name: measures[name] for name in names if name in measures}
    if evaluation.illustration is not None:
        parts["nearest"] = NearestImages(**vars(evaluation.illustration.triples), space="pixels")
        parts["embedding"] = Embedding(**vars(evaluation.illustration.embedding))
    return parts


def _figures(content: ReportContent) -> dict[str, Figure]:
    classes, images, labels = content.classes[:_MOST_CLASSES], content.synthetic_images, content.synthetic_labels
    if content.real_images is None or content.real_labels is None:
        figures = {"images": image_grid(images, labels, classes, 2 * _PER_CLASS)}
    else:
        real = content.real_images, content.real_labels
        figures = {"images": real_beside_synthetic(*real, images, labels, classes, _PER_CLASS)}
    if content.per_class:
        figures["per-class"] = per_class_bars(content.per_class, content.per_class_reference or {}, content.classes)
    if content.nearest is not None:
        figures["nearest"] = nearest_images(content.nearest)
    if content.embedding is not None:
        figures["embedding"] = embedding_scatter(content.embedding, content.classes)
    if content.label_counts is not None:
        figures["labels"] = label_distribution(content.label_counts, content.classes, content.silo_names)
    if content.losses:
        figures["losses"] = loss_curves(content.losses)
    for number, key in enumerate(content.round_keys, start=1):
        figures[f"rounds-{number}"] = round_curve(content.rounds, key)
    return figures


def _render(content: ReportContent, pictures: Mapping[str, Picture]) -> str:
    rows = list(content.results.values())
    columns = column_names(rows)
    # What is compared stands side by side, first.
    compared = [name for name in _COMPARED if name in columns]
    return render(
        document(BODY),
        title=content.title,
        content=content,
        pictures=pictures,
        round_pictures=[
            (pictures[f"rounds-{number}"], content.round_meanings.get(key, ""))
            for number, key in enumerate(content.round_keys, start=1)
        ],
        groups=_grouped(content.results, content.result_groups),
        result_columns=compared + [name for name in columns if name not in compared],
        numeric_columns={name for row in rows for name, value in row.items() if isinstance(value, Real)},
        silo_columns=column_names(content.silos),
        cost=dict(_cost(label, value) for label, value in (content.cost or {}).items()),
        hidden_classes=max(0, len(content.classes) - _MOST_CLASSES),
        hidden_bars=max(0, len(content.classes) - MOST_BARS),
        limits=(*limits_of(content.privacy), *content.limits),
    )


def _grouped(
    results: Mapping[str, Mapping[str, Any]], headings: Mapping[str, str]
) -> list[tuple[str, dict[str, Mapping[str, Any]]]]:
    """Split results into (heading, rows); rows before the first heading have an empty one."""
    groups: list[tuple[str, dict[str, Mapping[str, Any]]]] = []
    for measure, row in results.items():
        if measure in headings or not groups:
            groups.append((headings.get(measure, ""), {}))
        groups[-1][1][measure] = row
    return groups


def _cost(key: str, value: float) -> tuple[str, str]:
    label = _COST_LABELS.get(key.replace("_", "-"), key.replace("_", " ").replace("-", " "))
    unit = human_bytes if "bytes" in key else duration if "seconds" in key else show
    return label, unit(value)
