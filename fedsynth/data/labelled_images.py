"""Labelled images in memory or mapped into it, and stratified splits of their labels."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedsynth.data.apportion import apportion
from fedsynth.data.image_cache import take_rows
from fedsynth.errors import UserError

Names = NDArray[np.str_]
_ROWS = 1000


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images with one class each.

    Attributes:
        images: uint8 (N, H, W, C), 0 to 255.
        labels: int64 (N,), positions in ``classes``.
        classes: names of all classes of the dataset, also of those without an image here.
        silos: (N,) name of the silo that each image comes from, where silos are given; None otherwise.
        groups: (N,) name of what each image belongs to, such as a patient or a slide, which is never split; None where
            every image stands for itself.

    Raises:
        ValueError: shapes, types or labels do not fit together.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    silos: Names | None = None
    groups: Names | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}(images={self.images.shape}, classes={list(self.classes)})"

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise ValueError(f"images must be uint8 (N, H, W, C), got {self.images.dtype} {self.images.shape}")
        if self.labels.dtype != np.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(f"labels must be int64 ({len(self.images)},), got {self.labels.dtype} {self.labels.shape}")
        if len(self.labels) and (self.labels.min() < 0 or self.labels.max() >= len(self.classes)):
            raise ValueError(f"labels must lie in 0 to {len(self.classes) - 1}")
        for what, names in (("silos", self.silos), ("groups", self.groups)):
            if names is not None and (names.dtype.kind != "U" or names.shape != self.labels.shape):
                raise ValueError(f"{what} must be text ({len(self.labels)},), got {names.dtype} {names.shape}")

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: NDArray[np.int64] | Sequence[int]) -> LabelledImages:
        """Return the images at ``indices``, in that order, with the same classes; many mapped ones are mapped again."""
        chosen = np.asarray(indices, dtype=np.int64)
        silos, groups = (None if names is None else names[chosen] for names in (self.silos, self.groups))
        return LabelledImages(take_rows(self.images, chosen), self.labels[chosen], self.classes, silos, groups)

    def label_counts(self) -> NDArray[np.int64]:
        """Return the number of images of every class, int64 (num_classes,)."""
        return np.bincount(self.labels, minlength=len(self.classes)).astype(np.int64)

    def fingerprint(self) -> str:
        """Return the SHA-256 (hex) of shape, pixels, labels and class names: what a model is trained on."""
        head = json.dumps([self.images.shape, self.classes])
        digest = hashlib.sha256(head.encode())
        for first in range(0, len(self), _ROWS):  # they may lie on disk
            digest.update(np.ascontiguousarray(self.images[first : first + _ROWS]).data)
        # Little-endian on every machine, so that a fingerprint names the same data everywhere.
        digest.update(np.ascontiguousarray(self.labels, dtype="<i8").data)
        return digest.hexdigest()


Folds = tuple[LabelledImages, LabelledImages]


def stratified_split(
    labels: NDArray[np.int64], fraction: float, rng: np.random.Generator, groups: Names | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Take ``fraction`` of the samples out, class by class, and leave every class at least one sample.

    Args:
        labels: (N,) non-negative integers.
        fraction: share to take, 0 <= fraction < 1; the number of samples is rounded up.
        rng: decides which samples of a class are taken.
        groups: (N,) what each sample belongs to; a group stays or is taken as a whole. None: every sample for itself.

    Returns:
        Two sorted int64 index arrays that partition 0 to N - 1: what stays and what is taken. Fewer are taken than
        asked only where a class would otherwise lose its last sample. With groups the number is only near the one
        asked: none where every group is too large, and always less than twice as many.
    """
    if not len(labels):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    counts = np.bincount(labels)
    wanted = held_out_counts(counts, fraction)
    taken = np.zeros(len(labels), dtype=bool)
    if groups is None:
        for label, number in enumerate(wanted):
            taken[rng.permutation(np.flatnonzero(labels == label))[:number]] = True
    else:
        names, member = np.unique(groups, return_inverse=True)
        held = np.zeros((len(names), len(counts)), dtype=np.int64)
        np.add.at(held, (member, labels), 1)
        taken = _held_out_groups(held, wanted, rng)[member]
    return np.flatnonzero(~taken), np.flatnonzero(taken)


def _held_out_groups(held: NDArray[np.int64], wanted: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Choose groups whose samples come near ``wanted``: those that fit, then those that bring classes, or all, nearer.

    Args:
        held: (G, num_classes) samples of every group.
        wanted: (num_classes,) samples to take.
        rng: decides the order in which groups are tried.
    """
    taken = np.zeros(len(held), dtype=bool)
    left, missing = held.sum(axis=0), wanted.copy()
    order = rng.permutation(len(held))
    for better in (
        lambda _, after: (after >= 0).all(),
        lambda before, after: np.abs(after).sum() < np.abs(before).sum(),
        lambda before, after: abs(after.sum()) < abs(before.sum()),
    ):
        for group in order[~taken[order]]:
            row = held[group]
            if better(missing, missing - row) and (left - row)[row > 0].all():
                taken[group] = True
                left, missing = left - row, missing - row
    return taken


def held_out_counts(counts: NDArray[np.int64], fraction: float) -> NDArray[np.int64]:
    """Return how many samples of every class (num_classes,) :func:`stratified_split` takes of ``counts``."""
    if not counts.any():
        return np.zeros_like(counts)
    # The subtraction keeps 0.07 * 100 = 7.000000000000001 from becoming 8.
    total = math.ceil(fraction * int(counts.sum()) - 1e-9)
    # Of equal remainders the larger class gives the image.
    order = np.argsort(-counts, kind="stable")
    wanted = np.empty_like(counts)
    wanted[order] = apportion(total, counts[order])
    return np.minimum(wanted, np.maximum(counts - 1, 0))


def largest_held_out_share(fraction: float, groups: bool) -> float:
    """Return the share, 0 to 1, that :func:`stratified_split` takes at most: of groups less than twice ``fraction``."""
    return min(1.0, fraction * (2 if groups else 1))


def check_fraction(key: str, fraction: float) -> None:
    """Raise UserError unless 0 <= ``fraction`` < 1; ``key`` is the configuration key to name."""
    if not 0 <= fraction < 1:
        raise UserError(f"{key} = {fraction} is out of range: give a share of at least 0 and less than 1")
