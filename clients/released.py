"""What a real silo has told of its images: drawn once, kept in its state folder, and told again whatever is asked.

Noise that is drawn anew for every question averages out, and exact answers about two choices of images differ by what
is in one and not in the other. So a question chooses nothing: counts and moments are of all images in the silo's
folder, which is known by the names and sizes of its files, and by nothing that a server sends.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np

from clients.noisy_counts import Counts, add_geometric_noise, noisy_label_counts
from clients.noisy_moments import SENSITIVITY, add_gaussian_noise, gaussian_scale
from clients.privacy_account import PrivacyAccount
from fedsynth.data import held_out_counts
from fedsynth.errors import UserError
from fedsynth.evaluation.feature_statistics import FeatureStatistics
from fedsynth.evaluation.silo_measures import HeldOutMeasures
from fedsynth.files import damage_named, write_json
from fedsynth.locks import locked
from fedsynth.policy import SiloPolicy
from fedsynth.privacy.spending import gaussian, geometric
from fedsynth.spec import ImageSpec

FOLDER = "released"
FORMAT = 1
COUNTS, STATISTICS, EVALUATION, CLASSIFIED = "counts", "statistics", "evaluation", "answers of a classifier"
"""What is drawn, in the words of the privacy account."""
REPLACED = 2
"""L1 sensitivity of a histogram to another image of its class in the place of one: it leaves a cell for another."""
_LOCK_SECONDS = 600.0
_DIGITS = 16

Content = dict[str, Any]


def secret_generator() -> np.random.Generator:
    """Return a generator that no seed of a run leads to: noise that somebody can draw again is taken off again."""
    return np.random.default_rng()


class ImageFiles:
    """The image files of a silo, as a question cannot change them.

    Args:
        root: the silo's folder.
        files: of every class.
        unlabelled: images without labels.

    Attributes:
        counts: files by class.
        entries: a digest of name and size of each, sorted, but of those without labels.
        key: of the data set; images without labels are no part of it.
        unlabelled_key: of those without labels.
    """

    def __init__(self, root: Path, files: Mapping[str, Sequence[Path]], unlabelled: Sequence[Path] = ()) -> None:
        self.counts = {name: len(paths) for name, paths in files.items()}
        self.entries = sorted(_entry(root, path) for paths in files.values() for path in paths)
        self.key = _key_of(self.entries)
        self.unlabelled_key = _key_of(sorted(_entry(root, path) for path in unlabelled))


class ReleasedAnswers:
    """The answers about one data set.

    Args:
        files: the data set.
        state: the silo's state folder.
        policy: how much noise, and for how many data sets.
        account: where what is drawn is accounted for first.
    """

    def __init__(self, files: ImageFiles, state: Path, policy: SiloPolicy, account: PrivacyAccount) -> None:
        self._files = files
        self._all = state / FOLDER
        self._folder = self._all / files.key
        self._policy = policy
        self._account = account

    def training_counts(self, classes: Sequence[str], holdout_fraction: float) -> Counts:
        """Return the images per class that the silo says it trains on: what a split leaves of the noisy counts.

        It is a split without groups, whose hold-out of ``holdout_fraction`` groups come near: what exactly is left of
        them changes with the seed and the fraction, which a server chooses, and would tell how large they are.

        Raises:
            PolicyError: counts of ``count-noise-draws`` other data sets are told, or the budget of ε is spent.
            UserError: a kept answer or the account is damaged.
        """
        counts = self._counts(classes)
        return counts - held_out_counts(counts, holdout_fraction)

    def rare(self, classes: Sequence[str]) -> set[int]:
        """Return the labels of classes that the silo has a folder of, and that count as absent."""
        counts = self._counts(classes)
        return {k for k, name in enumerate(classes) if name in self._files.counts and not counts[k]}

    def held_out_number(self, classes: Sequence[str], holdout_fraction: float) -> int:
        """Return how many images the silo says that a split holds out; errors as of :meth:`training_counts`."""
        return int(held_out_counts(self._counts(classes), holdout_fraction).sum())

    def moments(self, extractor: str, spec: ImageSpec, measure: Callable[[], FeatureStatistics]) -> FeatureStatistics:
        """Return moments of the features of all images; those that were told before, if any were.

        Args:
            extractor: name of the network.
            spec: size and channels in which it sees the images.
            measure: computes the exact ones.

        Raises:
            PolicyError: too few images, or too few that no earlier answer without noise is about, or the budget of ε is
                spent.
            UserError: they were told in another size or depth of the images, or a kept answer is damaged.
        """
        self._refuse_few()
        name, seen = f"moments-{extractor}", [spec.channels, spec.size]

        def draw() -> Content:
            epsilon, delta = self._policy.statistics_epsilon, self._policy.statistics_delta
            if not epsilon:
                self._refuse_near(name)
            noise = gaussian_scale(epsilon, delta, SENSITIVITY) / SENSITIVITY if epsilon else 0.0
            self._account.spend(STATISTICS, gaussian(noise), self._files.key)
            moments = measure()
            if epsilon:
                moments = add_gaussian_noise(moments, epsilon, delta, secret_generator())
            told = {"mean": moments.mean.tolist(), "products": moments.products.tolist(), "noise": moments.noise}
            return {"channels-and-size": seen, **told, "noise-multiplier": noise, "files": self._files.entries}

        content = self._once(name, draw)
        with _damage_named(self._path(name)):
            self._account.told_before(STATISTICS, gaussian(content.get("noise-multiplier", 0.0)), self._files.key)
            channels, size = content["channels-and-size"]
            mean, products = (np.array(content[key], dtype=np.float64) for key in ("mean", "products"))
            moments = FeatureStatistics(int(sum(self._kept_counts().values())), mean, products, content["noise"])
        if seen != [channels, size]:
            raise UserError(
                f"statistics of these images were told with {size} pixels and {channels} channel(s), and are told once:"
                f" give image-size = {size}"
            )
        return moments

    def held_out(self, run: int, question: str, measure: Callable[[], HeldOutMeasures]) -> HeldOutMeasures:
        """Return a noisy histogram of held-out images; that which was told before, if the question was asked before.

        Args:
            run: Flower's number of the run: it gets one answer.
            question: a hash of all that decides the exact histogram besides the images.
            measure: computes it.

        Raises:
            PolicyError: too few images, or the budget of ε is spent.
            UserError: the run has got another answer, or what is kept is damaged.
        """
        self._refuse_few()
        path = self._path("held-out")
        with self._alone():
            if not path.exists():
                self._refuse_new_data_set()
            content = self._read(path) if path.exists() else {"answers": []}
            with _damage_named(path):
                told = {answer["question"]: HeldOutMeasures(*answer["cells"]) for answer in content["answers"]}
                runs = {answer["run"] for answer in content["answers"]}
            if question in told:
                self._account.told_before(EVALUATION, None, self._files.key)
                return told[question]
            if run in runs:
                raise UserError("this run has got its one answer about held-out images: start another run")
            scale = REPLACED / self._policy.limit("evaluation_epsilon")
            # Without a budget, one image more may have others held out: no ε is as to one image more or less.
            self._account.spend(EVALUATION, geometric(scale) if self._account.bounded else None, self._files.key)
            exact = np.array(astuple(measure()), dtype=np.int64)
            cells = add_geometric_noise(exact, scale, secret_generator()).clip(min=0).tolist()
            content["answers"].append({"run": run, "question": question, "cells": cells})
            write_json(path, {"format": FORMAT, **content})
            return HeldOutMeasures(*cells)

    def classified(self, kind: str, run: int, question: str, scale: float, measure: Callable[[], Counts]) -> Counts:
        """Return noisy numbers of images by what a classifier says of them; those told before, if it was asked before.

        Args:
            kind: of the message.
            run: Flower's number of the run: it gets one answer of a kind.
            question: a hash of all that decides the exact numbers besides the images.
            scale: of the geometric noise on each; one image more or less changes one of them by one.
            measure: computes them, (N,).

        Raises:
            PolicyError: the budget of ε is spent, or answers about too many data sets are told.
            UserError: the run has got another answer, or what is kept is damaged.
        """
        path = self._path(f"classified-{kind}")
        with self._alone():
            if not path.exists():
                self._refuse_new_data_set()
            content = self._read(path) if path.exists() else {"answers": []}
            with _damage_named(path):
                answers = [(one["run"], one["question"], one["counts"], one["scale"]) for one in content["answers"]]
            for _, asked, counts, drawn in answers:
                if asked == question:
                    self._account.told_before(CLASSIFIED, geometric(drawn), self._files.key)
                    return np.array(counts, dtype=np.int64)
            if run in {before for before, *_ in answers}:
                raise UserError(f"this run has got its one answer to '{kind}': start another run")
            self._account.spend(CLASSIFIED, geometric(scale), self._files.key)
            counts = add_geometric_noise(measure(), scale, secret_generator()).tolist()
            content["answers"].append({"run": run, "question": question, "scale": scale, "counts": counts})
            write_json(path, {"format": FORMAT, **content})
            return np.array(counts, dtype=np.int64)

    def _counts(self, classes: Sequence[str]) -> Counts:
        """Return noisy images of some classes, held out or not; 0 of those that count as absent."""
        kept = self._kept_counts()
        counts = np.array([kept.get(name, 0) for name in classes], dtype=np.int64)
        return np.where(counts >= self._policy.least_class_images, counts, 0)

    def _kept_counts(self) -> dict[str, int]:
        scale, counts = self._policy.count_noise, self._files.counts

        def draw() -> Content:
            self._account.spend(COUNTS, geometric(scale), self._files.key)
            noisy = noisy_label_counts(np.array(list(counts.values()), np.int64), scale, secret_generator())
            return {"scale": scale, "counts": dict(zip(counts, noisy.tolist(), strict=True))}

        content = self._once("counts", draw)
        with _damage_named(self._path("counts")):
            self._account.told_before(COUNTS, geometric(content["scale"]), self._files.key)
            return {name: int(count) for name, count in content["counts"].items()}

    def _once(self, name: str, draw: Callable[[], Content]) -> Content:
        """Return what is kept under a name; drawn and written before anybody hears of it, if nothing is."""
        path = self._path(name)
        with self._alone():
            if not path.exists():
                self._refuse_new_data_set()
                write_json(path, {"format": FORMAT, **draw()})
            return self._read(path)

    def _refuse_few(self) -> None:
        # With a budget, no refusal tells on which side of a number the exact one is.
        known = sum(self._kept_counts().values()) if self._account.bounded else len(self._files.entries)
        if known < self._policy.least_images:
            self._policy.refuse("least_images", "there are fewer images here")

    def _refuse_new_data_set(self) -> None:
        others = [path for path in self._all.glob("*/") if path != self._folder]
        if not self._folder.exists() and len(others) >= self._policy.count_noise_draws:
            self._policy.refuse("count_noise_draws", f"answers about {len(others)} other states of the images are told")

    def _refuse_near(self, name: str) -> None:
        """Refuse an exact answer whose difference to an earlier one is an answer about a few images."""
        mine = Counter(self._files.entries)
        for path in self._all.glob(f"*/{name}.json"):
            content = self._read(path)
            with _damage_named(path):
                theirs, noise = Counter[str](content["files"]), content["noise"]
            apart = (mine - theirs).total() + (theirs - mine).total()
            if not noise and apart < self._policy.least_images:
                self._policy.refuse("least_images", "the images differ in fewer from those of an earlier answer")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes of the silo from drawing at the same time."""
        with locked(self._all / ".lock", f"what silo '{self._all.parent}' has told", _LOCK_SECONDS):
            yield

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"

    @staticmethod
    def _read(path: Path) -> Content:
        with _damage_named(path):
            content = dict(json.loads(path.read_text(encoding="utf-8")))
            if content.pop("format") != FORMAT:
                raise UserError(f"'{path}' is of another version of fedsynth: install the one that wrote it")
            return content


def _key_of(entries: Sequence[str]) -> str:
    return hashlib.sha256("".join(entries).encode()).hexdigest()[:_DIGITS]


def _entry(root: Path, path: Path) -> str:
    named = os.fsencode(path.relative_to(root))
    try:
        size = str(path.stat().st_size)
    except FileNotFoundError:
        size = "a link that leads nowhere"  # no image; whoever reads the images says so, or leaves it out
    return hashlib.sha256(named + b"\0" + size.encode()).hexdigest()[:_DIGITS]


def _damage_named(path: Path) -> AbstractContextManager[None]:
    return damage_named(path, "has the noise drawn anew")
