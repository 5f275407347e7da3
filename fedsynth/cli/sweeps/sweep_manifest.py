"""``sweep.json``: the runs of a sweep and where they stand."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from types import MappingProxyType
from typing import Any, Literal

from fedsynth.cli.sweeps.sweep_file import PlannedRun, Sweep
from fedsynth.cli.tables.run_groups import config_hash, deciding_settings
from fedsynth.config import RunConfig, Scalar, without_paths
from fedsynth.disk import explained_writing
from fedsynth.errors import UserError
from fedsynth.files import parse_json, write_json
from fedsynth.output import RunFolder
from fedsynth.sealed import Seal, sealed_json, unsealed_json
from fedsynth.text import without_machine_paths
from fedsynth.units import show_setting

logger = logging.getLogger("fedsynth")

MANIFEST = "sweep.json"
_NO_GUESSES: Mapping[str, float] = MappingProxyType({})
SEAL = Seal("list of the runs of a sweep", 1)
Status = Literal["waiting", "running", "finished", "failed"]


@dataclass(frozen=True)
class Entry:
    """A run of a sweep.

    Attributes:
        row: The method, or combination of values, that it repeats.
        seed: Its seed.
        folder: Name of its folder in the sweep's.
        hash: See :func:`fedsynth.cli.tables.run_groups.config_hash`.
        settings: Configuration keys that are not at their defaults.
        status: A run that was cut short is ``waiting``, or still ``running`` if the sweep was killed with it.
        reason: Why it failed.
        seconds: What it took; None: not known.
    """

    row: str
    seed: int
    folder: str
    hash: str
    settings: dict[str, Scalar] = field(default_factory=dict)
    status: Status = "waiting"
    reason: str = ""
    seconds: float | None = None

    @property
    def name(self) -> str:
        """Row and seed."""
        return f"{self.row}, seed {self.seed}"


def read_manifest(folder: Path) -> list[Entry]:
    """Return the runs of the sweep in ``folder``.

    Raises:
        UserError: there is none, or its ``sweep.json`` is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"'{folder}' holds no {MANIFEST}: start the sweep with 'fedsynth sweep', or name its folder")
    try:
        return [Entry(**row) for row in unsealed_json(parse_json(path.read_text(encoding="utf-8")), SEAL, path)["runs"]]
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise UserError(f"'{path}' is damaged: start 'fedsynth sweep' again to have it rewritten ({error})") from error


def write_manifest(sweep: Sweep, entries: Sequence[Entry]) -> None:
    """Write the runs of a sweep to its folder, whole or not at all."""
    runs = [asdict(entry) | {"reason": without_machine_paths(entry.reason, sweep.folder)} for entry in entries]
    content = {"sweep": sweep.folder.name, "file": sweep.file.name, "runs": runs}
    with explained_writing(sweep.folder):
        write_json(sweep.folder / MANIFEST, sealed_json(content, SEAL))


def plan(sweep: Sweep) -> list[Entry]:
    """Return all runs of a sweep, in their order, as the sweep's folder has them.

    A run is found by what it computes, whatever its folder is called.

    Raises:
        UserError: the folder of a run that is still to be made holds another one.
    """
    known = _known_runs(sweep.folder)
    earlier = {entry.hash: entry for entry in _earlier(sweep.folder)}
    entries = [_entry(run, known.get(run.hash), earlier.get(run.hash)) for run in sweep.runs]
    for run, entry in zip(sweep.runs, entries, strict=True):
        if run.hash not in known:
            _refuse_other_run(run, sweep.folder / entry.folder)
    return entries


def estimated_seconds(
    entry: Entry, entries: Sequence[Entry], guesses: Mapping[str, float] = _NO_GUESSES
) -> float | None:
    """Return what a run will take, by the finished runs of its row, or else of its strategy, or else by a guess.

    Args:
        entry: the run.
        entries: all of the sweep.
        guesses: seconds by hash; None is returned of runs that nothing tells of.
    """
    done = [other for other in entries if other.seconds is not None and other.status == "finished"]
    alike = [other for other in done if other.row == entry.row]
    alike = alike or [other for other in done if _strategy(other) == _strategy(entry)]
    return fmean(other.seconds or 0.0 for other in alike) if alike else guesses.get(entry.hash)


def time_left(
    asked: Sequence[Entry], entries: Sequence[Entry], guesses: Mapping[str, float] = _NO_GUESSES
) -> float | None:
    """Return the seconds for those runs of ``asked`` without an end, by all ``entries`` of the sweep and the guesses.

    A run of unknown kind counts as the mean of the others.
    """
    open_ones = [entry for entry in asked if entry.status in ("waiting", "running")]
    known = [seconds for entry in entries if (seconds := estimated_seconds(entry, entries, guesses)) is not None]
    if not known:
        return None
    return sum(estimated_seconds(entry, entries, guesses) or fmean(known) for entry in open_ones)


def finished(entry: Entry, folder: Path, measured: float = 0.0) -> Entry:
    """Return the entry of a run that has its results.

    Args:
        entry: as it was.
        folder: the sweep's.
        measured: seconds since it was started or resumed; 0: not known.
    """
    seconds = max(measured, _wall_seconds(RunFolder(folder / entry.folder)) or 0.0)
    return replace(entry, status="finished", reason="", seconds=seconds or None)


def _entry(run: PlannedRun, found: RunFolder | None, earlier: Entry | None) -> Entry:
    folder = found.path if found else run.folder
    defaults = RunConfig().to_run_config()
    settings = without_paths(
        {key: value for key, value in run.config.to_run_config().items() if value != defaults[key]}
    )
    entry = Entry(run.row, run.seed, folder.name, run.hash, settings)
    if found and found.results.is_file():
        return finished(entry, folder.parent, (earlier and earlier.seconds) or 0.0)
    failed = earlier is not None and earlier.status == "failed"
    return replace(entry, status="failed", reason=earlier.reason) if earlier and failed else entry


def _known_runs(folder: Path) -> dict[str, RunFolder]:
    """Return what lies in a sweep's folder, by what it computes; of equal runs one with results."""
    runs = [RunFolder(path.parent) for path in sorted(folder.glob("*/config.json"))]
    runs.sort(key=lambda run: run.results.is_file())
    return {config_hash(run.read_config()): run for run in runs}


def _earlier(folder: Path) -> list[Entry]:
    try:
        return read_manifest(folder) if (folder / MANIFEST).is_file() else []
    except UserError as error:
        # The runs' own folders say where they stand; only how long failed ones took, and why, is lost.
        logger.warning("%s: it is rewritten", error)
        return []


def _refuse_other_run(run: PlannedRun, path: Path) -> None:
    folder = RunFolder(path)
    if not folder.config.is_file():
        return
    known, wanted = deciding_settings(folder.read_config()), deciding_settings(run.config)
    key = next(key for key in {**wanted, **known} if wanted.get(key) != known.get(key))
    raise UserError(
        f"'{path}' holds a run with {key} = {show_setting(known.get(key))}, and {run.name} has"
        f" {show_setting(wanted.get(key))}: move that folder elsewhere, or give the row or the sweep file another name"
    )


def _wall_seconds(folder: RunFolder) -> float | None:
    try:
        value = (folder.read_results() or {}).get("wall-seconds")
    except UserError:
        return None
    return float(value) if isinstance(value, int | float) else None


def _strategy(entry: Entry) -> Any:
    return entry.settings.get("strategy", RunConfig().run.strategy)
