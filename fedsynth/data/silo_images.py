"""What one client sees: its own images, a part of them held out from training."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsynth.data.duplicate_images import describe_shared
from fedsynth.data.image_cache import ImageCache
from fedsynth.data.image_folder import read_image_folder, read_with_unlabelled
from fedsynth.data.labelled_images import Folds, LabelledImages, check_fraction, stratified_split
from fedsynth.data.value_range import ValueRange
from fedsynth.seeding import derive_seed
from fedsynth.spec import ImageSpec

logger = logging.getLogger("fedsynth")


@dataclass(frozen=True, eq=False)
class Silo:
    """One institution's images.

    Attributes:
        name: ``silo-<partition id>`` in a simulation, otherwise the silo's own name.
        train: images the local model is trained on.
        holdout: images never trained on, for early stopping, the copy check and per-silo evaluation.
        unlabelled: images whose labels the silo does not know, where labels are few. In a simulation their true ones
            stand here, to measure with; at a real silo all are of the one class ``unlabelled``. None: every image is
            labelled.
    """

    name: str
    train: LabelledImages
    holdout: LabelledImages
    unlabelled: LabelledImages | None = None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the name and of all parts, computed once: nobody writes to the images of an open silo."""
        parts = [self.name, self.train.fingerprint(), self.holdout.fingerprint()]
        if self.unlabelled is not None:
            parts.append(self.unlabelled.fingerprint())
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def split_holdout(data: LabelledImages, fraction: float, seed: int, each_alone: bool = False) -> Folds:
    """Split off a stratified holdout, the same one for every method: only labels, groups and seed matter.

    Args:
        data: all images of the silo.
        fraction: share to hold out, 0 <= fraction < 1.
        seed: the run's seed.
        each_alone: not stratified: whether an image is held out depends on nothing but its own pixels, or its group's
            name, and the seed; ``fraction`` is the share in the mean, and a class may be in one part alone. A guarantee
            as to one image more or less needs that of whatever sees one part: the image changes no other's part.

    Returns:
        (train, holdout). A class never leaves train; one with a single image has none in the holdout. No group is on
        both sides; the holdout is empty where each is too large, see
        :func:`~fedsynth.data.labelled_images.stratified_split`.

    Raises:
        UserError: ``fraction`` is out of range.
    """
    train, holdout = holdout_rows(data, np.arange(len(data)), fraction, seed, each_alone)
    return data.subset(train), data.subset(holdout)


def holdout_rows(
    data: LabelledImages, indices: NDArray[np.int64], fraction: float, seed: int, each_alone: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return which ``indices`` a silo that owns them trains on and holds out, as :func:`split_holdout` does."""
    check_fraction("holdout-fraction", fraction)
    if each_alone:
        held = np.array([_place(data, index, seed) < fraction for index in indices], dtype=bool)
        return indices[~held], indices[held]
    rng = np.random.default_rng(derive_seed(seed, "holdout"))
    groups = None if data.groups is None else data.groups[indices]
    train, holdout = stratified_split(data.labels[indices], fraction, rng, groups)
    return indices[train], indices[holdout]


def _place(data: LabelledImages, index: int, seed: int) -> float:
    """Return where from 0 to 1 an image, or its group, lies by itself."""
    named = data.images[index].tobytes() if data.groups is None else str(data.groups[index]).encode()
    salt = derive_seed(seed, "holdout-each-alone").to_bytes(8, "big")
    return int.from_bytes(hashlib.sha256(salt + named).digest()[:6], "big") / 2**48


def simulated_silo(
    train: LabelledImages,
    indices: NDArray[np.int64],
    partition_id: int,
    holdout_fraction: float,
    seed: int,
    each_alone: bool = False,
) -> Silo:
    """Return the silo that owns ``indices`` of a dataset's train fold; the rest as in :func:`split_holdout`."""
    name = f"silo-{partition_id}"
    own, held_out = holdout_rows(train, indices, holdout_fraction, seed, each_alone)
    folds = train.subset(own), train.subset(held_out)
    _warn_of_none_held_out(name, folds, holdout_fraction)
    return Silo(name, *folds)


def folder_silo(
    path: str | Path,
    name: str,
    holdout_fraction: float,
    seed: int,
    image_size: int | None = None,
    channels: int | None = None,
    classes: Sequence[str] | None = None,
    skip_bad_images: bool = False,
    value_range: ValueRange | None = None,
    first_page_only: bool = False,
    group_column: str = "",
    cache: ImageCache | None = None,
    each_alone: bool = False,
) -> Silo:
    """Return the silo whose images lie in its own folder, one folder per class.

    Errors are those of :func:`~fedsynth.data.image_folder.read_image_folder`, whose arguments these are, and of
    :func:`split_holdout`, whose argument ``each_alone`` is.
    """
    data = read_image_folder(
        path,
        image_size=image_size,
        channels=channels,
        skip_bad_images=skip_bad_images,
        classes=classes,
        value_range=value_range,
        first_page_only=first_page_only,
        group_column=group_column,
        cache=cache,
    )
    return _silo_of(data, name, holdout_fraction, seed, each_alone)


def few_labels_silo(
    path: str | Path,
    name: str,
    spec: ImageSpec,
    holdout_fraction: float,
    seed: int,
    **reading: Any,
) -> Silo:
    """Return the silo whose folder holds class folders and, beside them, a folder ``unlabelled``.

    Whether an image is held out depends on itself alone, see :func:`split_holdout`. An unlabelled image of a group that
    is held out is left out.

    Args:
        path: its folder.
        name: the silo's.
        spec: format and classes of the run's images.
        holdout_fraction: share of the labelled images to hold out, 0 <= fraction < 1.
        seed: the run's.
        reading: further arguments of :func:`~fedsynth.data.image_folder.read_with_unlabelled`, whose errors these are.
    """
    data, others = read_with_unlabelled(
        path, image_size=spec.size, channels=spec.channels, classes=spec.classes, **reading
    )
    silo = _silo_of(data, name, holdout_fraction, seed, each_alone=True)
    if others.groups is not None and silo.holdout.groups is not None:
        others = others.subset(np.flatnonzero(~np.isin(others.groups, silo.holdout.groups)))
    return replace(silo, unlabelled=others)


def _silo_of(data: LabelledImages, name: str, holdout_fraction: float, seed: int, each_alone: bool) -> Silo:
    train, holdout = split_holdout(data, holdout_fraction, seed, each_alone)
    if said := describe_shared(train, holdout, "held-out images"):
        logger.info("%s: %s", name, said)
    if data.groups is not None:
        groups, held = (len(np.unique(part.groups)) for part in (data, holdout) if part.groups is not None)
        logger.info("%s: %d images of %d in %d groups are held out", name, len(holdout), held, groups)
    _warn_of_none_held_out(name, (train, holdout), holdout_fraction)
    return Silo(name, train, holdout)


def _warn_of_none_held_out(name: str, folds: Folds, fraction: float) -> None:
    train, holdout = folds
    if train.groups is not None and fraction and not len(holdout):
        groups = len(np.unique(train.groups))
        logger.warning(
            "%s: no images are held out: each of the %d groups is too large for holdout-fraction = %g",
            name,
            groups,
            fraction,
        )
