"""One self-contained page that shows several runs side by side."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fedsynth.errors import UserError
from fedsynth.output.comparison_figures import Estimate, measure_dots, round_lines
from fedsynth.output.comparison_template import BODY
from fedsynth.output.dataset import PROVENANCE, SyntheticDataset, read_dataset
from fedsynth.output.figures import image_grid
from fedsynth.output.html_page import Picture, document, render, rendered, write_page

_PER_CLASS = 4
_MOST_CLASSES = 20
_BOOKKEEPING = frozenset({"round", "timestep", "seconds", "bytes-up", "bytes-down", "num-examples", "steps"})
"""Numbers of a round that count it, or that the table of costs shows."""


@dataclass(frozen=True)
class ComparisonCell:
    """A number of a table as it is read.

    Attributes:
        text: With its interval.
        best: Whether it is the best of its column beyond doubt (the intervals do not touch).
    """

    text: str
    best: bool = False


@dataclass(frozen=True)
class ComparisonTable:
    """A table with one row for each row label of the comparison, and perhaps more.

    Attributes:
        title: Headline.
        columns: Heads of the columns.
        rows: Label -> one cell per column.
    """

    title: str
    columns: Sequence[str]
    rows: Mapping[str, Sequence[ComparisonCell]]


@dataclass(frozen=True, eq=False)
class ComparisonContent:
    """Everything the page shows; a row is one or several runs. All text is plain text, what is empty is left out.

    Attributes:
        title: Headline.
        lead: One sentence: what is compared, and what all rows have in common.
        runs: One mapping per run, column to value; all have the same columns.
        tables: Measures and costs.
        warnings: What a reader must know before comparing.
        dots: See :func:`fedsynth.output.comparison_figures.measure_dots`.
        rounds: Row label -> lines of ``metrics.jsonl`` of each of its runs.
        samples: Row label -> (what the images are, the images).
        settings: Setting -> row label -> value, where users chose different values.
        filled_in: The same, where only the program did.
    """

    title: str
    lead: str
    runs: Sequence[Mapping[str, Any]]
    tables: Sequence[ComparisonTable]
    warnings: Sequence[str] = ()
    dots: Mapping[str, Mapping[str, tuple[Sequence[float], Estimate | None]]] | None = None
    rounds: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]] | None = None
    samples: Mapping[str, tuple[str, SyntheticDataset]] | None = None
    settings: Mapping[str, Mapping[str, Any]] | None = None
    filled_in: Mapping[str, Mapping[str, Any]] | None = None


@dataclass(frozen=True)
class _Sample:
    source: str
    picture: Picture


def write_comparison(path: Path, content: ComparisonContent) -> None:
    """Write the page to ``path`` and its pictures, as PNG, to ``<stem>-figures/`` beside it.

    The page carries its pictures and style inside, runs no script and asks for nothing over the network. Pictures of an
    earlier comparison under the same name are removed.

    Raises:
        UserError: ``path`` is no file, or it or the folder cannot be written.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"cannot write the comparison to '{path}': it is a folder; give the name of a file")
    classes = list(dict.fromkeys(name for _, dataset in (content.samples or {}).values() for name in dataset.classes))
    pictures = {name: rendered(figure) for name, figure in _figures(content, classes).items()}
    folder = path.parent / f"{path.stem}-figures"
    write_page(path, _page(content, classes, pictures), pictures, folder)
    for pattern in ("measures.png", "rounds-*.png", "images-*.png"):
        for earlier in folder.glob(pattern):
            if earlier.stem not in pictures:
                earlier.unlink()


def read_samples(folder: Path) -> tuple[SyntheticDataset, int]:
    """Read the dataset of a run, or those of all its silos as one: one image of each silo in turn.

    Args:
        folder: ``synthetic/`` of a run folder.

    Returns:
        The images, and the number of datasets they come from.

    Raises:
        UserError: There is none, or a file is damaged.
    """
    parts = sorted(path.parent for path in folder.glob(f"*/{PROVENANCE}"))
    if (folder / PROVENANCE).is_file() or not parts:
        return read_dataset(folder), 1
    datasets = [read_dataset(part) for part in parts]
    turns = np.argsort(np.concatenate([np.arange(len(dataset.labels)) for dataset in datasets]), kind="stable")
    images, labels = (np.concatenate([getattr(d, name) for d in datasets])[turns] for name in ("images", "labels"))
    return replace(datasets[0], images=images, labels=labels), len(parts)


def shared_metrics(rounds: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]) -> list[str]:
    """Return the metrics worth a picture: numbers that vary in some run, and that at least two rows have, or the only.

    Args:
        rounds: Row label -> the lines of ``metrics.jsonl`` of each of its runs.
    """
    owners: dict[str, set[str]] = {}
    varying: set[str] = set()
    for label, tables in rounds.items():
        for numbers in map(_numbers, tables):
            varying |= {key for key, values in numbers.items() if len(values) > 1}
            for key in numbers:
                owners.setdefault(key, set()).add(label)
    least = min(2, len(rounds))
    return [key for key, labels in owners.items() if len(labels) >= least and key in varying]


def _numbers(rows: Sequence[Mapping[str, Any]]) -> dict[str, set[float]]:
    """Return the different values of every number of a run's rounds."""
    found: dict[str, set[float]] = {}
    for key, value in ((key, value) for row in rows for key, value in row.items()):
        if key not in _BOOKKEEPING and isinstance(value, Real) and not isinstance(value, bool):
            found.setdefault(key, set()).add(float(value))
    return found


def _figures(content: ComparisonContent, classes: Sequence[str]) -> dict[str, Figure]:
    figures = {"measures": measure_dots(content.dots)} if content.dots else {}
    for key in shared_metrics(content.rounds or {}):
        figures["rounds-" + re.sub(r"[^\w-]", "_", key)] = round_lines(content.rounds or {}, key)
    for number, (_, dataset) in enumerate((content.samples or {}).values(), start=1):
        indices = np.array([classes.index(name) for name in dataset.classes])
        figures[f"images-{number}"] = image_grid(
            dataset.images, indices[dataset.labels], classes[:_MOST_CLASSES], _PER_CLASS
        )
    return figures


def _page(content: ComparisonContent, classes: Sequence[str], pictures: Mapping[str, Picture]) -> str:
    samples = content.samples or {}
    return render(
        document(BODY),
        title=content.title,
        content=content,
        labels=list(next(iter((content.settings or content.filled_in or {}).values()), {})),
        pictures=pictures,
        samples={
            label: _Sample(source, pictures[f"images-{number}"])
            for number, (label, (source, _)) in enumerate(samples.items(), start=1)
        },
        classes=classes[:_MOST_CLASSES],
        hidden_classes=max(0, len(classes) - _MOST_CLASSES),
        round_pictures={name: picture for name, picture in pictures.items() if name.startswith("rounds-")},
    )
