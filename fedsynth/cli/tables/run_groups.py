"""Finished and unfinished runs, gathered into groups that differ in their seed alone."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from fedsynth.config import AUTO, RunConfig, Scalar
from fedsynth.errors import UserError
from fedsynth.output import RunFolder
from fedsynth.plugins import is_plugin
from fedsynth.units import show_setting

FREE_OF_RESULTS = frozenset(
    {
        *("seed", "run-name", "output-dir", "state-dir", "resume", "download", "device"),
        *("node-timeout", "reply-timeout", "round-timeout", "max-message-mb", "fast-replies"),
        *("evaluate", "evaluate-silos", "membership-inference", "min-statistics-samples"),
        "feature-extractor-weights-path",
    }
)
"""Keys in which repetitions of one experiment may differ: where it ran, how long it waited, which further measures it
took. ``min-replies`` is none of them: it decides with how few silos a round counts."""

_FURTHER_MEASURES = frozenset({"evaluate", "evaluate-silos", "membership-inference", "min-statistics-samples"})

_DATA = "the silos do not hold the same images, so a difference between rows is not the method's alone"
_CONDITIONS = {
    "dataset": "numbers from different images cannot be compared",
    "data-root": "numbers from different images cannot be compared",
    "image-size": "numbers from images of different sizes cannot be compared",
    "num-clients": _DATA,
    "partition": _DATA,
    "alpha": _DATA,
    "classes-per-client": _DATA,
    "samples-per-client": _DATA,
}
_MEASURED_WITH = {
    "feature-space": "Fréchet and kernel distance, Inception score, precision, recall, density and coverage compare"
    " only within one feature space",
    "n": "Fréchet distance, precision, recall, density and coverage compare only at equal n (images on each side)",
    "n-train": "accuracies compare only at equal n-train (images a classifier is trained on)",
}
_ONLY_WITH = {"alpha": "dirichlet", "classes-per-client": "pathological"}
"""Keys that mean something under one partition only."""


@dataclass(frozen=True, eq=False)
class Run:
    """One run as its folder tells it.

    Attributes:
        name: The folder, as the user gave it.
        folder: Its files.
        config: Its configuration.
        results: ``results.json``; None while the run has not finished.
    """

    name: str
    folder: RunFolder
    config: RunConfig
    results: Mapping[str, Any] | None

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.config.run.seed

    @property
    def measured(self) -> bool:
        """Whether the images were measured, not only counted and timed."""
        return self.results is not None and self.value("n") is not None

    def identity(self) -> dict[str, Scalar]:
        """Return the settings that repetitions share."""
        return {key: value for key, value in self.config.to_run_config().items() if key not in _free_of(self.config)}

    def value(self, key: str) -> float | None:
        """Return a number of the results; None if it is absent, not finite or no number."""
        value = (self.results or {}).get(key)
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            return None
        return float(value)


@dataclass(frozen=True, eq=False)
class RunGroup:
    """Runs that differ in their seed alone, in its order.

    Attributes:
        label: Strategy, and what tells the group from others of the same strategy.
        runs: At least one.
    """

    label: str
    runs: tuple[Run, ...]

    @property
    def settings(self) -> dict[str, Scalar]:
        """The settings that its runs share."""
        return self.runs[0].identity()

    @property
    def finished(self) -> list[Run]:
        """Its runs with results."""
        return [run for run in self.runs if run.results is not None]

    def values(self, key: str) -> list[float]:
        """Return a number of every run that has it."""
        return [value for run in self.runs if (value := run.value(key)) is not None]


def deciding_settings(config: RunConfig) -> dict[str, Scalar]:
    """Return what decides a run's numbers: seed, every key that results depend on, and which measures are taken.

    Keys that the program filled in are ``"auto"``, so that a plan and the run made from it have the same.
    """
    free = _free_of(config) - {"seed"} - _FURTHER_MEASURES
    flat = {key: AUTO if key in config.resolved else value for key, value in config.to_run_config().items()}
    return {key: value for key, value in flat.items() if key not in free}


def config_hash(config: RunConfig) -> str:
    """Return 16 hexadecimal digits that name the run: those of its :func:`deciding_settings`."""
    return hashlib.sha256(json.dumps(deciding_settings(config), sort_keys=True).encode()).hexdigest()[:16]


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read the runs of these folders.

    Raises:
        UserError: A folder is given twice, is no run folder, or one of its files is damaged.
    """
    seen: dict[Path, Path] = {}
    for path in paths:
        if (place := path.resolve()) in seen:
            raise UserError(f"'{path}' is given twice (as '{seen[place]}'): name every run once")
        seen[place] = path
    return [_read(path) for path in paths]


def group_runs(runs: Sequence[Run]) -> list[RunGroup]:
    """Gather repetitions, in the order of their first run, under labels that tell the groups apart."""
    clusters: dict[str, list[Run]] = {}
    for run in runs:
        clusters.setdefault(json.dumps(run.identity(), sort_keys=True), []).append(run)
    gathered = [sorted(cluster, key=lambda run: run.seed) for cluster in clusters.values()]
    rivals: dict[str, list[list[Run]]] = {}
    for cluster in gathered:
        rivals.setdefault(cluster[0].config.run.strategy, []).append(cluster)
    return [RunGroup(_label(cluster[0], rivals), tuple(cluster)) for cluster in gathered]


def differing_settings(clusters: Sequence[Sequence[Run]]) -> tuple[list[str], list[str]]:
    """Return the keys in which groups differ: by somebody's choice, and only because the program filled in "auto"."""
    settings = [cluster[0].identity() for cluster in clusters]
    # "data-root" belongs to the settings of image folders only.
    keys = dict.fromkeys(key for row in settings for key in row)
    differing = [key for key in keys if len({show_setting(row.get(key)) for row in settings}) > 1]
    chosen = [key for key in differing if any(_was_chosen(cluster, key) for cluster in clusters)]
    return chosen, [key for key in differing if key not in chosen]


def _free_of(config: RunConfig) -> frozenset[str]:
    # Image folders and users' own datasets are known by their path; the others by their names, wherever they lie.
    by_path = config.data.dataset == "imagefolder" or is_plugin(config.data.dataset)
    return FREE_OF_RESULTS if by_path else FREE_OF_RESULTS | {"data-root"}


def _was_chosen(cluster: Sequence[Run], key: str) -> bool:
    value = cluster[0].identity().get(key, AUTO)
    return value != AUTO and not any(key in run.config.resolved for run in cluster)


def _label(run: Run, rivals: Mapping[str, Sequence[Sequence[Run]]]) -> str:
    strategy, settings = run.config.run.strategy, run.identity()
    chosen, filled_in = differing_settings(rivals[strategy])
    told_apart = {tuple(show_setting(cluster[0].identity().get(key)) for key in chosen) for cluster in rivals[strategy]}
    keys = chosen if len(told_apart) == len(rivals[strategy]) else [*chosen, *filled_in]
    return ", ".join([strategy, *(f"{key}={show_setting(settings[key])}" for key in keys if key in settings)])


def _read(path: Path) -> Run:
    if not path.is_dir():
        raise UserError(f"there is no folder '{path}': give the folder of a run")
    folder = RunFolder.open(path)
    return Run(str(path), folder, folder.read_config(), _read_results(folder.results))


def _read_results(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"'{path}' is damaged: restore it, or run again ({error})") from error


def comparability_warnings(groups: Sequence[RunGroup]) -> list[str]:
    """Return what a reader must know before comparing: runs left out, repeated seeds, unequal conditions."""
    return [
        *_left_out(groups),
        *_repeated_seeds(groups),
        *(w for key, why in _CONDITIONS.items() for w in _unequal(key, why, _of_settings(key, groups))),
        *(w for key, why in _MEASURED_WITH.items() for w in _unequal(key, why, _of_results(key, groups))),
    ]


def _left_out(groups: Sequence[RunGroup]) -> Iterator[str]:
    for group in groups:
        for run in group.runs:
            who = f"{run.name} ({group.label}, seed {run.seed})"
            if run.results is None:
                yield f"{who} has not finished (no results.json): it is in no number of its row"
            elif not run.measured:
                yield f"{who} was not measured: only its cost counts"


def _repeated_seeds(groups: Sequence[RunGroup]) -> Iterator[str]:
    for group in groups:
        for seed, count in Counter(run.seed for run in group.finished).items():
            if count > 1:
                yield (
                    f"{group.label}: seed {seed} occurs {count} times; repeated seeds are not independent, so its"
                    " intervals are too narrow"
                )


def _of_settings(key: str, groups: Sequence[RunGroup]) -> dict[str, list[str]]:
    """Return value -> labels of the groups that have it, for a setting that matters to them."""
    found: dict[str, list[str]] = {}
    for group in groups:
        settings = group.settings
        if key in settings and settings["partition"] == _ONLY_WITH.get(key, settings["partition"]):
            found.setdefault(show_setting(settings[key]), []).append(group.label)
    return found


def _of_results(key: str, groups: Sequence[RunGroup]) -> dict[str, list[str]]:
    """Return value -> labels of the groups with a run that was measured with it."""
    found: dict[str, list[str]] = {}
    for group in groups:
        results = [run.results or {} for run in group.finished]
        for value in dict.fromkeys(show_setting(row[key]) for row in results if key in row):
            found.setdefault(value, []).append(group.label)
    return found


def _unequal(key: str, why: str, found: Mapping[str, Sequence[str]]) -> Iterator[str]:
    if len(found) > 1:
        values = "; ".join(f"{value}: {' / '.join(labels)}" for value, labels in found.items())
        yield f"{key} differs ({values}): {why}"
