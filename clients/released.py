"""What a real silo has told of its images: drawn once, kept in its state folder, and told again whatever is asked.

Noise that is drawn anew for every question averages out, and exact answers about two choices of images differ by what
is in one and not in the other. So a question chooses nothing: counts and moments are of all images in the silo's folder,
which is known by the names and sizes of its files, and by nothing that a server sends.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from clients.noisy_counts import Counts, add_geometric_noise, noisy_label_counts
from clients.noisy_moments import add_gaussian_noise
from fedsynth.data import held_out_counts
from fedsynth.errors import UserError
from fedsynth.evaluation.feature_statistics import FeatureStatistics
from fedsynth.evaluation.silo_measures import HeldOutMeasures
from fedsynth.files import atomic_file
from fedsynth.locks import locked
from fedsynth.policy import SiloPolicy
from fedsynth.spec import ImageSpec

FOLDER = "released"
FORMAT = 1
REPLACED = 2
"""L1 sensitivity of a histogram to another image in the place of one: it leaves one cell and enters another."""
_LOCK_SECONDS = 60.0

T = TypeVar("T")


class ImageFiles:
    """The image files of a silo, as a question cannot change them.

    Args:
        root: the silo's folder.
        files: of every class.

    Attributes:
        counts: files by class.
        entries: a digest of name and size of each, sorted.
        key: of the data set, short.
    """

    def __init__(self, root: Path, files: Mapping[str, Sequence[Path]]) -> None:
        self.counts = {name: len(paths) for name, paths in files.items()}
        self.entries = sorted(_digest(root, path) for paths in files.values() for path in paths)
        self.key = hashlib.sha256("".join(self.entries).encode()).hexdigest()[:16]


class ReleasedAnswers:
    """The answers about one data set.

    Args:
        files: the data set.
        state: the silo's state folder.
        policy: how much noise, and for how many data sets.
    """

    def __init__(self, files: ImageFiles, state: Path, policy: SiloPolicy) -> None:
        self._files = files
        self._all = state / FOLDER
        self._folder = self._all / files.key
        self._policy = policy

    def training_counts(self, classes: Sequence[str], holdout_fraction: float) -> Counts:
        """Return the images per class that the silo says it trains on: what a split leaves of the noisy counts.

        Raises:
            PolicyError: counts of ``count-noise-draws`` other data sets are told.
            UserError: a kept answer is damaged.
        """
        counts = self._counts(classes)
        return counts - held_out_counts(counts, holdout_fraction)

    def total(self, classes: Sequence[str]) -> int:
        """Return the number of images that the silo says it has; errors as of :meth:`training_counts`."""
        return int(self._counts(classes).sum())

    def _counts(self, classes: Sequence[str]) -> Counts:
        scale = self._policy.count_noise

        def draw() -> dict[str, Any]:
            names = sorted(self._files.counts)
            counts = np.array([self._files.counts[name] for name in names], dtype=np.int64)
            noisy = noisy_label_counts(counts, scale, np.random.default_rng())
            return {"scale": scale, "counts": dict(zip(names, noisy.tolist(), strict=True))}

        kept = self._once("counts", draw, lambda content: dict(content["counts"]))
        return np.array([kept.get(name, 0) for name in classes], dtype=np.int64)

    def moments(self, extractor: str, spec: ImageSpec, measure: Callable[[], FeatureStatistics]) -> FeatureStatistics:
        """Return moments of the features of all images; those that were told before, if any were.

        Args:
            extractor: name of the network.
            spec: size and channels in which it sees the images.
            measure: computes the exact ones.

        Raises:
            PolicyError: too few images, or images that differ from those of an earlier answer in too few.
            UserError: they were told in another size or depth of the images, or a kept answer is damaged.
        """
        self._check_enough()
        seen = [spec.channels, spec.size]

        def draw() -> dict[str, Any]:
            self._refuse_near_answers(extractor)
            moments = measure()
            if self._policy.statistics_epsilon:
                given = self._policy.statistics_epsilon, self._policy.statistics_delta
                moments = add_gaussian_noise(moments, *given, np.random.default_rng())
            told = {"mean": moments.mean.tolist(), "products": moments.products.tolist(), "noise": moments.noise}
            return {"channels-and-size": seen, **told, "files": self._files.entries}

        def read(content: Mapping[str, Any]) -> FeatureStatistics:
            told = content["channels-and-size"]
            if told != seen:
                raise UserError(
                    f"moments of these images were told before, from {told[1]} pixels and {told[0]} channel(s), and"
                    f" are told once: give image-size = {told[1]}"
                )
            return FeatureStatistics(
                self.total(spec.classes), np.array(content["mean"]), np.array(content["products"]), content["noise"]
            )

        return self._once(f"moments-{extractor}", draw, read)

    def held_out(self, run: int, question: str, measure: Callable[[], HeldOutMeasures]) -> HeldOutMeasures:
        """Return a noisy histogram of held-out images; that which was told before, if the question was asked before.

        Args:
            run: Flower's number of the run: it gets one answer.
            question: a hash of all that decides the exact histogram besides the images.
            measure: computes it.

        Raises:
            PolicyError: too few images.
            UserError: the run has got another answer, or what is kept is damaged.
        """
        self._check_enough()
        scale = REPLACED / self._policy.limit("evaluation_epsilon")

        def draw() -> dict[str, Any]:
            exact = np.array(list(asdict(measure()).values()), dtype=np.int64)
            noisy = add_geometric_noise(exact, scale, np.random.default_rng()).clip(min=0)
            return {"question": question, "cells": noisy.tolist()}

        def read(content: Mapping[str, Any]) -> HeldOutMeasures:
            if content["question"] != question:
                raise UserError("this run has got its one answer about held-out images: start another run")
            return HeldOutMeasures(*content["cells"])

        with self._kept_evaluations() as (by_run, by_question):
            ...
        return self._once(f"held-out-{run}", draw, read)
