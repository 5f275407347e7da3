"""What all benchmarks share: fresh processes, facts about the machine, tables and result files."""

from __future__ import annotations

import multiprocessing
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch

from fedsynth.files import atomic_file, write_json
from fedsynth.output.table_formats import markdown_lines
from fedsynth.progress import duration

P = ParamSpec("P")
T = TypeVar("T")

_PACKAGES = ("flwr", "ray", "torch", "diffusers", "numpy")
_ROOT = Path(__file__).parents[2]
_BEGUN = time.monotonic()


def in_fresh_process(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call ``function`` in a new interpreter, so that no cache, thread setting or freed memory carries over."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result()


def machine_facts() -> dict[str, Any]:
    """Return what timings on this machine depend on."""
    return {
        "cores": os.cpu_count(),
        "torch threads": torch.get_num_threads(),
        "load average at the start": round(os.getloadavg()[0], 2),
        "platform": platform.platform(terse=True),
        "python": platform.python_version(),
        **{name: version(name) for name in _PACKAGES},
    }


def origin() -> str:
    """Return what a published table says of itself: command, commit, machine, duration and date, as two list items.

    The duration is that of this process so far: of runs that it found and did not make again, their own is not in it.
    """
    program = sys.argv[0]
    if Path(program).is_relative_to(_ROOT):
        program = f"-m {Path(program).relative_to(_ROOT).with_suffix('')}".replace(os.sep, ".")
    command = shlex.join(["python", *program.split(), *sys.argv[1:]])
    return (
        f"- Command: `{command}`\n"
        f"- Commit: {_commit()}; machine: {os.cpu_count()} CPU cores, load average {os.getloadavg()[0]:.1f} at the end;"
        f" duration: {duration(time.monotonic() - _BEGUN)}; date: {datetime.now(UTC):%Y-%m-%d}"
    )


def _commit() -> str:
    words = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty= with changes", "--exclude=*"]
    try:
        return subprocess.run(words, capture_output=True, encoding="utf-8", check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "none, no clone"


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Summarise repeated timings, in seconds: how many, mean, median and extremes."""
    return {
        "count": len(seconds),
        "mean": statistics.mean(seconds),
        "median": statistics.median(seconds),
        "min": min(seconds),
        "max": max(seconds),
    }


def markdown_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Lay out rows with equal keys as a Markdown table whose columns line up as plain text too."""
    return markdown_lines([list(rows[0]), *(list(row.values()) for row in rows)])


def publish(
    name: str, facts: Mapping[str, Any], rows: Sequence[Mapping[str, str]], details: Any, folder: Path | None
) -> None:
    """Print origin, facts and table, and write them to ``<folder>/<name>.md``, with the details to ``<name>.json``.

    Args:
        name: of the benchmark.
        facts: about the machine.
        rows: of the table, numbers already formatted.
        details: every number behind the table, ready for JSON.
        folder: None: only print.
    """
    measured_on = ", ".join(f"{key} {value}" for key, value in facts.items())
    text = f"# {name}\n\n{origin()}\n\n{measured_on}\n\n{markdown_table(rows)}\n"
    print(text, flush=True)
    if folder is None:
        return
    with atomic_file(folder / f"{name}.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    write_json(folder / f"{name}.json", {"machine": dict(facts), "table": list(rows), "details": details})
