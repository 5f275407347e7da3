"""Run many configurations, one after the other: a sweep file of methods, combinations of values and seeds."""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fedsynth.cli.deployment.flower import flower_home
from fedsynth.cli.options import ALL_KEYS, add_keys, given_keys, refuse_rest
from fedsynth.cli.run import check_data, refuse_if_busy
from fedsynth.cli.stopping import StoppedError
from fedsynth.cli.sweeps.run_process import end_processes, finish_run, last_progress
from fedsynth.cli.sweeps.sweep_file import PlannedRun, Sweep, read_sweep
from fedsynth.cli.sweeps.sweep_manifest import Entry, estimated_seconds, finished, plan, time_left, write_manifest
from fedsynth.errors import RunError, UserError, did_you_mean
from fedsynth.locks import locked
from fedsynth.output import RunFolder, terminal_table
from fedsynth.progress import duration
from fedsynth.spec import ImageSpec
from fedsynth.tracking import check_tracker

_SIGN_OF_LIFE = 60.0
_NO_GUESSES: Mapping[str, float] = MappingProxyType({})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The sweep file, and configuration keys for all its runs."""
    parser.add_argument("sweep", type=Path, help="TOML file of a sweep")
    parser.add_argument("--dry-run", action="store_true", help="only show the runs, and how long they will take")
    parser.add_argument("--seeds", type=int, nargs="+", help="make only the runs of these seeds now")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="make only the runs of these rows now")
    add_keys(parser, "SWEEP.toml [--dry-run] [--rows ROW ...] [--seeds SEED ...]")


def execute(options: argparse.Namespace, rest: list[str]) -> int:
    """Make every run of a sweep, or of the chosen rows and seeds, that has no results yet; return 1 if some failed.

    Raises:
        UserError: anything is wrong with the file, the choice or the data: then no run has started.
    """
    refuse_rest("sweep", rest, [*ALL_KEYS, "dry-run", "seeds", "rows"])
    sweep = read_sweep(options.sweep, given_keys(options))
    chosen = _chosen(sweep, options.seeds, options.rows)
    specs = _check_all_data([sweep.runs[place] for place in chosen], sweep)
    entries = plan(sweep)
    if options.dry_run:
        guesses = _guesses([(sweep.runs[place], entries[place]) for place in chosen], specs, entries)
        print(_overview(sweep, entries, chosen, guesses))
        return 0
    with locked(sweep.folder / ".lock", f"sweep '{sweep.folder}'"):
        for entry in entries:
            end_processes(sweep.folder / entry.folder)
        refuse_if_busy(flower_home())
        return _work(sweep, entries, chosen)


def _chosen(sweep: Sweep, seeds: Sequence[int] | None, rows: Sequence[str] | None) -> list[int]:
    """Return which of a sweep's runs have one of these seeds and rows; None: any."""
    for option, given, known in (
        ("seeds", seeds, [run.seed for run in sweep.runs]),
        ("rows", rows, [run.row for run in sweep.runs]),
    ):
        there = [str(value) for value in dict.fromkeys(known)]
        for value in map(str, given or ()):
            if value not in there:
                hint = did_you_mean(value, there)
                raise UserError(f"--{option} '{value}': not in '{sweep.file}'{hint} ({option}: {', '.join(there)})")
    found = [
        place
        for place, run in enumerate(sweep.runs)
        if (seeds is None or run.seed in seeds) and (rows is None or run.row in rows)
    ]
    if not found:
        raise UserError(f"--seeds with --rows: none of these rows of '{sweep.file}' has one of these seeds")
    return found


def _check_all_data(runs: Sequence[PlannedRun], sweep: Sweep) -> list[ImageSpec]:
    """Load each of the runs' federations once, however many rows share it, and look for their trackers.

    Returns:
        Format and classes of the images of every run.
    """
    seen: dict[Any, ImageSpec] = {}
    specs = []
    for planned in runs:
        config = planned.config
        shared = (config.data, config.run.num_clients, config.run.seed, config.model)
        try:
            check_tracker(config.run.tracker)
            if shared not in seen:
                seen[shared] = check_data(config)
        except UserError as error:
            raise UserError(f"sweep '{sweep.file}': {planned.name}: {error}") from None
        specs.append(seen[shared])
    return specs


def _guesses(
    runs: Sequence[tuple[PlannedRun, Entry]], specs: Sequence[ImageSpec], entries: Sequence[Entry]
) -> dict[str, float]:
    """Measure what runs will take of which no finished one tells; return the seconds by hash."""
    # Here: it imports torch, which a typing error would wait for.
    from fedsynth.cli.sweeps.first_guess import FirstGuess

    guess, found = FirstGuess(), {}
    for (planned, entry), spec in zip(runs, specs, strict=True):
        if entry.status != "finished" and estimated_seconds(entry, entries) is None:
            found[entry.hash] = guess.seconds(planned.config, spec)
    return {key: seconds for key, seconds in found.items() if seconds is not None}


def _work(sweep: Sweep, entries: list[Entry], chosen: Sequence[int]) -> int:
    start = time.monotonic()
    # What failed before is tried again.
    entries = [_again(entry) if place in chosen else entry for place, entry in enumerate(entries)]
    print(f"sweep {sweep.folder}: {_standing(entries, chosen)}", flush=True)
    write_manifest(sweep, entries)
    try:
        for place in chosen:
            if entries[place].status != "finished":
                _make(sweep, entries, place, chosen)
    except StoppedError as stopped:
        said = f"the run in work has ended, {_standing(entries, chosen)}; the same command goes on"
        raise StoppedError(stopped.number, said) from None
    failed = [entries[place] for place in chosen if entries[place].status == "failed"]
    for entry in failed:
        print(f"failed: {entry.name}: {entry.reason} (all it said: {_console(sweep, entry)})")
    done = sum(entry.status == "finished" for entry in entries)
    print(f"\n{done} of {len(entries)} runs finished, {duration(time.monotonic() - start)}; tables: ", end="")
    print(f"fedsynth table {sweep.folder}", flush=True)
    return 1 if failed else 0


def _again(entry: Entry) -> Entry:
    return replace(entry, status="waiting") if entry.status == "failed" else entry


def _make(sweep: Sweep, entries: list[Entry], place: int, chosen: Sequence[int]) -> None:
    """Make one run and keep the manifest up to date."""
    planned = sweep.runs[place]
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
        print(f"{label}: failed: {error}; {_standing(entries, chosen)}", flush=True)
    except BaseException:
        set_entry(replace(entries[place], status="waiting"))
        raise
    else:
        set_entry(finished(entries[place], sweep.folder, time.monotonic() - start))
        print(f"{label}: finished in {duration(time.monotonic() - start)}; {_standing(entries, chosen)}", flush=True)


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


def _standing(entries: Sequence[Entry], chosen: Sequence[int], guesses: Mapping[str, float] = _NO_GUESSES) -> str:
    """Say how far the chosen runs are: ``12 of 39 finished, 1 failed, about 1 h 10 min left``."""
    asked = [entries[place] for place in chosen]
    count = {status: sum(entry.status == status for entry in asked) for status in ("finished", "failed")}
    some = f" chosen runs (of {len(entries)})" if len(asked) < len(entries) else ""
    parts = [f"{count['finished']} of {len(asked)}{some} finished"]
    parts += [f"{count['failed']} failed"] if count["failed"] else []
    if sum(count.values()) < len(asked):
        left = time_left(asked, entries, guesses)
        parts.append("time left unknown" if left is None else f"about {duration(left)} left")
    return ", ".join(parts)


def _expected(entry: Entry, entries: Sequence[Entry]) -> str:
    seconds = estimated_seconds(entry, entries)
    return "" if seconds is None else f", about {duration(seconds)}"


def _overview(sweep: Sweep, entries: Sequence[Entry], chosen: Sequence[int], guesses: Mapping[str, float]) -> str:
    """Return a table of the chosen runs, and what they will take."""
    rows, asked = {}, [entries[place] for place in chosen]
    for entry in asked:
        state = "to resume" if _begun(sweep, entry) else "to run"
        rows[entry.name] = {
            "folder": entry.folder,
            "state": entry.status if entry.status in ("finished", "failed") else state,
            "time": _time(entry, entries, guesses),
        }
    again = [_again(entry) for entry in entries]
    standing = _standing(again, chosen, guesses) + _how_known(asked, entries, guesses)
    return f"{terminal_table(rows)}\n\n{len(asked)} runs in {sweep.folder}: {standing}"


def _time(entry: Entry, entries: Sequence[Entry], guesses: Mapping[str, float]) -> str:
    seconds = entry.seconds if entry.status == "finished" else estimated_seconds(entry, entries, guesses)
    if seconds is None:
        return "unknown"
    return f"{duration(seconds)}{' (guess)' if entry.hash in guesses else ''}"


def _how_known(asked: Sequence[Entry], entries: Sequence[Entry], guesses: Mapping[str, float]) -> str:
    """Say which of the times of the ``asked`` runs are no measured ones."""
    waiting = [entry for entry in asked if entry.status != "finished"]
    unknown = sum(estimated_seconds(entry, entries, guesses) is None for entry in waiting)
    said = ""
    if any(entry.hash in guesses for entry in waiting):
        said = (
            "; a guess: from some training steps of each network on this machine, if it does nothing else, and the time"
            " that start and evaluation of the default run take; the first finished run tells better"
        )
    if 0 < unknown < len(waiting):
        return f"{said}; {unknown} runs of a kind that is not known yet count as the mean"
    if unknown:
        return (
            "; no run of this sweep has finished yet, so what one takes on this machine is not known: make one with"
            f" --rows {shlex.quote(waiting[0].row)} --seeds {waiting[0].seed}, and ask again"
        )
    return said


def _begun(sweep: Sweep, entry: Entry) -> bool:
    return RunFolder(sweep.folder / entry.folder).config.is_file()
