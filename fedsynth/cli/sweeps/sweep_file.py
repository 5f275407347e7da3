"""Sweep files: many runs in one TOML file, expanded and refused as a whole before the first of them starts."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsynth.cli.options import ALL_KEYS, read_toml
from fedsynth.cli.run import SWEEP_WORDS, read_setting, with_absolute_paths
from fedsynth.cli.tables.run_groups import config_hash
from fedsynth.config import RunConfig, Scalar, idle_keys
from fedsynth.errors import UserError, did_you_mean
from fedsynth.units import show_setting

_NAMED_BY_THE_SWEEP = {
    "seed": "give seeds, a list",
    "run-name": "rows and seeds name the runs",
    "resume": "a sweep finds by itself what it can go on with",
}

Settings = dict[str, Scalar]


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep.

    Attributes:
        row: The method, or the combination of values, that it repeats.
        config: Complete, with absolute paths; keys may still be ``"auto"``.
    """

    row: str
    config: RunConfig

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.config.run.seed

    @property
    def name(self) -> str:
        """Row and seed, as progress and errors say it."""
        return f"{self.row}, seed {self.seed}"

    @property
    def folder(self) -> Path:
        """Where it writes, unless the run is found elsewhere in the sweep's folder."""
        return Path(self.config.run.output_dir) / self.config.run.run_name

    @property
    def hash(self) -> str:
        """See :func:`fedsynth.cli.tables.run_groups.config_hash`."""
        return config_hash(self.config)


@dataclass(frozen=True)
class Sweep:
    """A sweep file, expanded.

    Attributes:
        file: The file.
        folder: Of all its runs.
        runs: All rows of the first seed, then those of the next: a sweep that is cut short leaves rows that pair.
    """

    file: Path
    folder: Path
    runs: tuple[PlannedRun, ...]


@dataclass(frozen=True)
class _Row:
    name: str
    settings: Settings
    seeds: Sequence[int]


def read_sweep(path: Path, given: Mapping[str, Scalar] | None = None) -> Sweep:
    """Expand a sweep file.

    ===============================  =================================================================
    ``base = "setting.toml"``        configuration of all runs that take it, beside the sweep file; optional
    any configuration key            the same, in place
    ``seeds = [0, 1, 2]``            every row is run once a seed; default: the configuration's seed
    ``[grid]`` ``key = [...]``       every combination of the values
    ``[zip]`` ``key = [...]``        the first values together, the second, ...; equally long
    ``[[method]]`` or ``[[run]]``    a row: ``name``, configuration keys, and ``seeds`` of its own
    ===============================  =================================================================

    Args:
        path: the file; its stem names the sweep, whose folder is ``<output-dir>/<stem>``.
        given: configuration of all runs that the user gave beside the file.

    Raises:
        UserError: an unknown key, a bad value, lists of unequal length, a key that is set in two places, or two rows or
            runs that are the same.
    """
    try:
        runs, folder = _expand(path, _read(path), dict(given or {}))
    except UserError as error:
        raise UserError(f"sweep '{path}': {error}") from None
    return Sweep(path.absolute(), folder, runs)


def _read(path: Path) -> dict[str, Any]:
    content = read_toml(path, "a sweep")
    for key in content:
        _check_key(key, SWEEP_WORDS)
    return content


def _check_key(key: str, words: Collection[str] = ()) -> None:
    if key in _NAMED_BY_THE_SWEEP:
        raise UserError(f"'{key}' cannot be set: {_NAMED_BY_THE_SWEEP[key]}")
    if key not in ALL_KEYS and key not in words:
        raise UserError(f"unknown config key '{key}'{did_you_mean(key, [*ALL_KEYS, *words])}")


def _expand(path: Path, content: Mapping[str, Any], given: Settings) -> tuple[tuple[PlannedRun, ...], Path]:
    base = read_setting(path.parent / content["base"]) if "base" in content else {}
    common = {**base, **{key: value for key, value in content.items() if key not in SWEEP_WORDS}, **given}
    seeds = _seeds(content, [common.pop("seed", 0)])
    rows = [row for named in _named(content) for row in _combined(named, content, seeds)]
    _refuse_varied(given, rows, content)
    shared = _shared(common, rows)
    place = {key: value for key, value in common.items() if key == "output-dir"}
    folder = Path(with_absolute_paths(RunConfig.from_run_config(place)).run.output_dir) / path.stem
    order = dict.fromkeys(seed for row in rows for seed in row.seeds)
    pairs = list(zip(rows, shared, strict=True))
    runs = tuple(_planned(row, taken, seed, folder) for seed in order for row, taken in pairs if seed in row.seeds)
    _refuse_equal(runs)
    return runs, folder


def _shared(common: Settings, rows: Sequence[_Row]) -> list[Settings]:
    """Return the settings of all rows that each row takes.

    Raises:
        UserError: no row takes one of them.
    """
    idle = [idle_keys({**common, **row.settings}) for row in rows]
    for key in common:
        if all(key in found and key not in row.settings for row, found in zip(rows, idle, strict=True)):
            raise UserError(f"{idle[0][key]}; no row takes it")
    return [{key: value for key, value in common.items() if key not in found} for found in idle]


def _seeds(table: Mapping[str, Any], default: Sequence[int]) -> list[int]:
    seeds: Any = table.get("seeds", default)
    whole = isinstance(seeds, list) and all(isinstance(seed, int) and seed >= 0 for seed in seeds)
    if not whole or any(isinstance(seed, bool) for seed in seeds) or not seeds:
        raise UserError(f"seeds = {seeds!r}: must be a list of whole numbers >= 0, such as [0, 1, 2]")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"seeds = {seeds!r}: name each once")
    return list(seeds)


def _named(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the tables of ``[[method]]`` and ``[[run]]``; without any, one that changes nothing."""
    tables = [table for word in ("method", "run") for table in _tables(word, content.get(word, []))]
    for table in tables:
        name = table.get("name")
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"a row has name = {name!r}: give every [[method]] and [[run]] a name")
        with _in_row(name):
            for key in table:
                _check_key(key, ("name", "seeds"))
    return tables or [{}]


def _tables(word: str, tables: Any) -> list[dict[str, Any]]:
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise UserError(f"'{word}' must be tables: write [[{word}]] above the keys of each")
    return tables


def _combined(named: Mapping[str, Any], content: Mapping[str, Any], seeds: Sequence[int]) -> Iterator[_Row]:
    """Yield a named row with every combination of ``[grid]`` and ``[zip]``."""
    name = str(named.get("name", ""))
    own = {key: value for key, value in named.items() if key not in ("name", "seeds")}
    with _in_row(name):
        own_seeds = _seeds(named, seeds)
    for varied in _combinations(content):
        for key in own.keys() & varied.keys():
            raise UserError(f"row '{name}': '{key}' is varied by [grid] or [zip] too: set it in one place")
        label = ", ".join([*([name] if name else []), *(f"{key}={show_setting(v)}" for key, v in varied.items())])
        yield _Row(label, {**varied, **own}, own_seeds)


def _combinations(content: Mapping[str, Any]) -> Iterator[Settings]:
    grid, zipped = _lists("grid", content), _lists("zip", content)
    for key in grid.keys() & zipped.keys():
        raise UserError(f"'{key}' stands in [grid] and in [zip]: set it in one place")
    lengths = {key: len(values) for key, values in zipped.items()}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{key} has {length}" for key, length in lengths.items())
        raise UserError(f"the lists of [zip] must be equally long: {said} values")
    columns = list(zip(*zipped.values(), strict=True)) if zipped else [()]
    for combination in itertools.product(*grid.values()):
        for column in columns:
            yield dict(zip([*grid, *zipped], [*combination, *column], strict=True))


def _lists(word: str, content: Mapping[str, Any]) -> dict[str, list[Scalar]]:
    table = content.get(word, {})
    if not isinstance(table, dict):
        raise UserError(f"'{word}' must be a table: write [{word}] above its keys")
    for key, values in table.items():
        _check_key(key)
        if not isinstance(values, list) or not values:
            raise UserError(f"[{word}] {key} = {values!r}: must be a list of values")
    return table


def _refuse_varied(given: Settings, rows: Sequence[_Row], content: Mapping[str, Any]) -> None:
    """Refuse what the user gave beside the file and the file decides run by run."""
    for key in given:
        if key in _NAMED_BY_THE_SWEEP and (key != "seed" or "seeds" in content):
            raise UserError(f"--{key} cannot be given: {_NAMED_BY_THE_SWEEP[key]}")
        if any(key in row.settings for row in rows):
            raise UserError(f"--{key} cannot be given: the sweep sets it row by row")


def _planned(row: _Row, common: Settings, seed: int, folder: Path) -> PlannedRun:
    settings = {**common, **row.settings, "seed": seed}
    name = row.name or str(settings.get("strategy", RunConfig().run.strategy))
    place = {"output-dir": str(folder), "run-name": f"{_plain(name)}-{seed}"}
    with _in_row(row.name):
        return PlannedRun(name, with_absolute_paths(RunConfig.from_run_config({**settings, **place})))


@contextmanager
def _in_row(row: str) -> Iterator[None]:
    """Say in which row something is wrong."""
    try:
        yield
    except UserError as error:
        raise UserError(f"row '{row}': {error}" if row else str(error)) from None


def _plain(name: str) -> str:
    """Return the part of a folder's name that says the row."""
    return re.sub(r"[^\w.=+]+", "-", name).strip("-.") or "row"


def _refuse_equal(runs: Sequence[PlannedRun]) -> None:
    folders: dict[str, str] = {}
    hashes: dict[str, str] = {}
    for run in runs:
        # File systems of some machines take "A" and "a" for the same.
        folder = run.folder.name.casefold()
        if folder in folders:
            raise UserError(f"rows '{folders[folder]}' and '{run.row}' would share a folder: give them other names")
        if run.hash in hashes:
            raise UserError(f"rows '{hashes[run.hash]}' and '{run.row}' are the same run: no setting of them differs")
        folders[folder] = hashes[run.hash] = run.row
