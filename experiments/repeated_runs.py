"""Runs of ``fedsynth run`` that an experiment needs: each is made once, reused later, and resumed after a crash."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from experiments.benchmarks.common import machine_facts, publish
from fedsynth.cli.options import typed
from fedsynth.cli.run import with_absolute_paths
from fedsynth.cli.sweeps.run_process import finish_run
from fedsynth.config import RunConfig
from fedsynth.output import RunFolder

RowsOf = Callable[[str, list[dict[str, Any]]], Iterable[dict[str, str]]]
"""A method's name and the results of its runs -> its rows of a table."""


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Add ``--recipe``: with which recipe a study trains; each has a folder of its own below ``--output-dir``."""
    parser.add_argument("--recipe", default="default", choices=["default", "paper"], help="of training")


def results_of(folder: Path, settings: Mapping[str, str]) -> dict[str, Any]:
    """Return the results of a run, which is started, or resumed, unless they are there.

    Args:
        folder: the run's folder.
        settings: configuration keys and values.
    """
    run = RunFolder(folder.absolute())
    if (found := run.read_results()) is None:
        place = {"output-dir": str(run.path.parent), "run-name": run.path.name}
        given = {**typed(settings), **place}
        finish_run(with_absolute_paths(RunConfig.from_run_config(given)), run)
        found = run.read_results()
    return found or {}


def publish_methods(
    experiment: str,
    methods: Mapping[str, Mapping[str, str]],
    seeds: Sequence[int],
    output_dir: Path,
    rows_of: RowsOf,
    first_seed_only: Collection[str] = (),
) -> None:
    """Run every method for every seed, unless its results are there, and publish the table.

    Args:
        experiment: name of the table's files.
        methods: name -> configuration keys and values.
        seeds: of the runs.
        output_dir: receives the runs and the table.
        rows_of: makes a method's rows of the table.
        first_seed_only: methods that take too long for all seeds.
    """
    rows: list[dict[str, str]] = []
    details = {}
    for name, settings in methods.items():
        folder = name.replace(", ", "-").replace(" ", "-")
        details[name] = [
            results_of(output_dir / f"{folder}-{seed}", {**settings, "seed": str(seed)})
            for seed in (seeds[:1] if name in first_seed_only else seeds)
        ]
        rows += rows_of(name, details[name])
    publish(experiment, machine_facts() | {"seeds": seeds}, rows, details, output_dir)


def one_row(columns: Mapping[str, str]) -> RowsOf:
    """Return what makes one :func:`table_row` per method."""
    return lambda name, results: [table_row(name, results, columns)]


def table_row(name: str, results: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> dict[str, str]:
    """Return a table's row for the runs of a method.

    Args:
        name: the method.
        results: ``results.json`` of every run.
        columns: their keys, to the heads of the columns.
    """
    return {"method": name, **{head: mean_and_range([r[key] for r in results]) for key, head in columns.items()}}


def mean_and_range(values: Sequence[float]) -> str:
    """Return ``mean (lowest … highest)``; of whole numbers the mean alone."""
    if all(float(value).is_integer() for value in values):
        return f"{fmean(values):.0f}"
    digits = 1 if fmean(values) > 2 else 3
    return f"{fmean(values):.{digits}f} ({min(values):.{digits}f} … {max(values):.{digits}f})"
