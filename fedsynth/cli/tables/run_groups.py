"""Finished and unfinished runs, gathered into groups that differ in their seed alone."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from fedsynth.config import AUTO, KEYS, Key, RunConfig, Scalar
from fedsynth.errors import UserError
from fedsynth.output import RunFolder
from fedsynth.plugins import family, is_plugin
from fedsynth.units import show_setting

_MEASURED_WITH = {
    "feature-space": "Fréchet and kernel distance, Inception score, precision, recall, density and coverage compare"
    " only within one feature space",
    "n": "Fréchet distance, precision, recall, density and coverage compare only at equal n (images on each side)",
    "n-train": "accuracies compare only at equal n-train (images a classifier is trained on)",
    "classifier-version": "the classifier of fedsynth was changed in between, mostly for images of 32 pixels and more:"
    " accuracies of cnn, and everything in the feature space domain-classifier, compare only within one version;"
    " runs without one are older",
}
_NOT_TOLD = {"classifier-version": "none"}
"""What runs have that were measured before there was the column."""


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
        flat = self.config.to_run_config()
        return {key: value for key, value in flat.items() if key != "seed" and _decides(key, self.config)}

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
    flat = {key: AUTO if key in config.resolved else value for key, value in config.to_run_config().items()}
    return {key: value for key, value in flat.items() if _decides(key, config, ("results", "measures"))}


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


def _decides(key: str, config: RunConfig, affected: Collection[str] = ("results",)) -> bool:
    """Whether a key decides what is affected, such as a run's results."""
    # Folders of one's own and plug-in datasets are known by their path; the others by their names, wherever they lie.
    if (
        key == "data-root"
        and family(config.data.dataset) not in ("imagefolder", "hf")
        and not is_plugin(config.data.dataset)
    ):
        return False
    return KEYS[key].facts.affects in affected


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
        if any(letter in str(path) for letter in "*?["):
            raise UserError(f"no folder matches the pattern '{path}': give the folder of a run, or a pattern of some")
        raise UserError(f"there is no folder '{path}': give the folder of a run")
    folder = RunFolder.open(path)
    return Run(str(path), folder, folder.read_config(), folder.read_results())


def comparability_warnings(groups: Sequence[RunGroup]) -> list[str]:
    """Return what a reader must know before comparing: runs left out, repeated seeds, unequal conditions."""
    return [
        *_left_out(groups),
        *_repeated_seeds(groups),
        *(w for key in KEYS.values() if key.facts.incomparable for w in _unequal_settings(key, groups)),
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


def _unequal_settings(key: Key, groups: Sequence[RunGroup]) -> Iterator[str]:
    """Warn of groups that differ in a setting that acts in them."""
    found: dict[str, list[str]] = {}
    for group in groups:
        settings = group.settings
        if key.name in settings and not key.why_idle(settings[key.name], settings):
            found.setdefault(show_setting(settings[key.name]), []).append(group.label)
    return _unequal(key.name, key.facts.incomparable, found)


def _of_results(key: str, groups: Sequence[RunGroup]) -> dict[str, list[str]]:
    """Return value -> labels of the groups with a run that was measured with it."""
    found: dict[str, list[str]] = {}
    for group in groups:
        results = [
            {**_NOT_TOLD, **(run.results or {})} if run.measured else run.results or {} for run in group.finished
        ]
        for value in dict.fromkeys(show_setting(row[key]) for row in results if key in row):
            found.setdefault(value, []).append(group.label)
    return found


def _unequal(key: str, why: str, found: Mapping[str, Sequence[str]]) -> Iterator[str]:
    if len(found) > 1:
        values = "; ".join(f"{value}: {' / '.join(labels)}" for value, labels in found.items())
        yield f"{key} differs ({values}): {why}"
