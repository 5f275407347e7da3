"""Runs of ``fedsynth run`` that an experiment needs: each is made once, reused later, and resumed after a crash."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from fedsynth.cli.options import typed
from fedsynth.cli.run import with_absolute_paths
from fedsynth.cli.sweeps.run_process import finish_run
from fedsynth.config import RunConfig
from fedsynth.output import RunFolder


def results_of(folder: Path, settings: Mapping[str, str]) -> dict[str, Any]:
    """Return the results of a run, which is started, or resumed, unless they are there.

    Args:
        folder: the run's folder.
        settings: configuration keys and values.
    """
    run = RunFolder(folder.absolute())
    if not run.results.is_file():
        place = {"output-dir": str(run.path.parent), "run-name": run.path.name}
        given = {**typed(settings), **place}
        finish_run(with_absolute_paths(RunConfig.from_run_config(given)), run)
    return dict(json.loads(run.results.read_text()))


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
