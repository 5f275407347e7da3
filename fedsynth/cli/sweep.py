"""Run many configurations, one after the other: a sweep file of methods, combinations of values and seeds."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fedsynth.cli.deployment.flower import flower_home
from fedsynth.cli.options import ALL_KEYS, add_keys, given_keys, refuse_rest
from fedsynth.cli.run import check_data, refuse_if_busy
from fedsynth.cli.stopping import StoppedError
from fedsynth.cli.sweeps.run_process import end_processes, finish_run, last_progress
from fedsynth.cli.sweeps.sweep_file import PlannedRun, Sweep, read_sweep
from fedsynth.cli.sweeps.sweep_manifest import Entry, estimated_seconds, finished, plan, time_left, write_manifest
from fedsynth.errors import RunError, UserError
from fedsynth.locks import locked
from fedsynth.output import RunFolder, terminal_table
from fedsynth.progress import duration

_SIGN_OF_LIFE = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The sweep file, and configuration keys for all its runs."""
    parser.add_argument("sweep", type=Path, help="TOML file of a sweep")
    parser.add_argument("--dry-run", action="store_true", help="only show the runs, and how long they will take")
    add_keys(parser)


def execute(options: argparse.Namespace, rest: list[str]) -> int:
    """Make every run of a sweep that has no results yet; return 1 if some failed.

    Raises:
        UserError: anything is wrong with the file or the data: then no run has started.
    """
    refuse_rest("sweep", rest, [*ALL_KEYS, "dry-run"])
    sweep = read_sweep(options.sweep, given_keys(options))
    _check_all_data(sweep)
    entries = plan(sweep)
    if options.dry_run:
        print(_overview(sweep, entries))
        return 0
    with locked(sweep.folder / ".lock", f"sweep '{sweep.folder}'"):
        for entry in entries:
            end_processes(sweep.folder / entry.folder)
        refuse_if_busy(flower_home())
        return _work(sweep, entries)


def _check_all_data(sweep: Sweep) -> None:
    """Load each of the sweep's federations once, however many rows share it."""
    seen = set()
    for planned in sweep.runs:
        config = planned.config
        shared = (config.data, config.run.num_clients, config.run.seed, config.model)
        if shared not in seen:
            seen.add(shared)
            try:
                check_data(config)
            except UserError as error:
                raise UserError(f"sweep '{sweep.file}': {planned.name}: {error}") from None


def _work(sweep: Sweep, entries: list[Entry]) -> int:
    start = time.monotonic()
    # What failed before is tried again.
    entries = [replace(entry, status="waiting") if entry.status == "failed" else entry for entry in entries]
    print(f"sweep {sweep.folder}: {_standing(entries)}", flush=True)
    write_manifest(sweep, entries)
    try:
        for place, planned in enumerate(sweep.runs):
            if entries[place].status != "finished":
                _make(sweep, entries, place, planned)
    except StoppedError as stopped:
        said = f"the run in work has ended, {_standing(entries)}; go on with 'fedsynth sweep {sweep.file}'"
        raise StoppedError(stopped.number, said) from None
    failed = [entry for entry in entries if entry.status == "failed"]
    for entry in failed:
        print(f"failed: {entry.name}: {entry.reason} (all it said: {_console(sweep, entry)})")
    done = len(entries) - len(failed)
    print(f"\n{done} of {len(entries)} runs finished, {duration(time.monotonic() - start)}; tables: ", end="")
    print(f"fedsynth table {sweep.folder}", flush=True)
    return 1 if failed else 0


def _make(sweep: Sweep, entries: list[Entry], place: int, planned: PlannedRun) -> None:
    """Make one run and keep the manifest up to date."""
    start, label = time.monotonic(), f"[{place + 1}/{len(entries)}] {planned.name}"
    folder = RunFolder(sweep.folder / entries[place].folder)
    verb = "resumed" if folder.config.is_file() else "started"
    print(f"{label}: {verb}{_expected(entries[place], entries)}", flush=True)

    def set_entry(entry: Entry) -> None:
        entries[place] = entry
        write_manifest(sweep, entries)

    set_entry(replace(entries[place], status="running"))
    try:
        finish_run(planned.config, folder, _console(sweep, entries[place]), _SignsOfLife(sweep, entries[place], label))
    except (RunError, UserError) as error:
        set_entry(replace(entries[place], status="failed", reason=str(error)))
        print(f"{label}: failed: {error}; {_standing(entries)}", flush=True)
    except BaseException:
        set_entry(replace(entries[place], status="waiting"))
        raise
    else:
        set_entry(finished(entries[place], sweep.folder, time.monotonic() - start))
        print(f"{label}: finished in {duration(time.monotonic() - start)}; {_standing(entries)}", flush=True)


class _SignsOfLife:
    """Print the progress of the run in work now and then."""

    def __init__(self, sweep: Sweep, entry: Entry, label: str) -> None:
        self._console, self._label = _console(sweep, entry), label
        self._last, self._said = time.monotonic(), ""

    def __call__(self) -> None:
        if time.monotonic() - self._last < _SIGN_OF_LIFE:
            return
        self._last, progress = time.monotonic(), last_progress(self._console)
        if progress != self._said:
            self._said = progress
            print(f"{self._label}: {progress}", flush=True)


def _console(sweep: Sweep, entry: Entry) -> Path:
    return sweep.folder / "logs" / f"{entry.folder}.txt"


def _standing(entries: Sequence[Entry]) -> str:
    """Say how far the sweep is: ``12 of 39 finished, 1 failed, about 1 h 10 min left``."""
    count = {status: sum(entry.status == status for entry in entries) for status in ("finished", "failed")}
    parts = [f"{count['finished']} of {len(entries)} finished"]
    parts += [f"{count['failed']} failed"] if count["failed"] else []
    if sum(count.values()) < len(entries):
        left = time_left(entries)
        parts.append("time left unknown" if left is None else f"about {duration(left)} left")
    return ", ".join(parts)


def _expected(entry: Entry, entries: Sequence[Entry]) -> str:
    seconds = estimated_seconds(entry, entries)
    return "" if seconds is None else f", about {duration(seconds)}"


def _overview(sweep: Sweep, entries: Sequence[Entry]) -> str:
    """Return a table of all runs, and what they will take."""
    rows = {}
    for entry in entries:
        seconds = entry.seconds if entry.status == "finished" else estimated_seconds(entry, entries)
        state = "to resume" if _begun(sweep, entry) else "to run"
        rows[entry.name] = {
            "folder": entry.folder,
            "state": entry.status if entry.status in ("finished", "failed") else state,
            "time": "unknown" if seconds is None else duration(seconds),
        }
    unknown = sum(e.status != "finished" and estimated_seconds(e, entries) is None for e in entries)
    some = 0 < unknown < sum(entry.status != "finished" for entry in entries)
    guess = f"; {unknown} runs of a kind that has not finished yet count as the mean" if some else ""
    again = [replace(entry, status="waiting") if entry.status == "failed" else entry for entry in entries]
    return f"{terminal_table(rows)}\n\n{len(entries)} runs in {sweep.folder}: {_standing(again)}{guess}"


def _begun(sweep: Sweep, entry: Entry) -> bool:
    return RunFolder(sweep.folder / entry.folder).config.is_file()
