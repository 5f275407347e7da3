"""Runs of ``fedsynth run`` that an experiment needs: made once, found again, gone on with after a crash."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any


def results_of(folder: Path, settings: Mapping[str, str], setting_file: Path | None = None) -> dict[str, Any]:
    """Return the results of a run, which is started, or resumed, unless they are there.

    Args:
        folder: the run's folder.
        settings: configuration keys and values.
        setting_file: TOML file that they change.
    """
    folder = folder.absolute()
    if not (folder / "results.json").is_file():
        started = (folder / "config.json").is_file()
        words = ["--resume", str(folder)] if started else _fresh(folder, settings, setting_file)
        subprocess.run([sys.executable, "-m", "fedsynth.cli", "run", *words], check=True)
    return dict(json.loads((folder / "results.json").read_text()))


def _fresh(folder: Path, settings: Mapping[str, str], setting_file: Path | None) -> list[str]:
    given = {**settings, "output-dir": str(folder.parent), "run-name": folder.name}
    options = [word for key, value in given.items() for word in (f"--{key}", value)]
    return [*([str(setting_file)] if setting_file else []), *options]


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
