"""Where images come from: natural silos, and groups such as patients, which no split tears apart."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedsynth.config import NATURAL
from fedsynth.config.data import Data
from fedsynth.data.folder_layout import named
from fedsynth.data.image_cache import join_images
from fedsynth.data.labelled_images import Folds, LabelledImages, Names, stratified_split
from fedsynth.errors import UserError, did_you_mean
from fedsynth.seeding import derive_seed
from fedsynth.text import visible

TEST_SHARE = 0.2
"""Share of the images that become the test fold of a dataset without one."""


@dataclass(frozen=True)
class Origins:
    """What a dataset is to say of its images besides their classes.

    Attributes:
        natural: whether the silos are given: :attr:`LabelledImages.silos` is wanted.
        silo_column: column of the metadata that names an image's silo; empty: the folders do, or the dataset itself.
        group_column: column of the metadata that becomes :attr:`LabelledImages.groups`; empty: no groups are wanted.
        test_silo: silo whose images are the test fold; empty: a share of every silo.
    """

    natural: bool = False
    silo_column: str = ""
    group_column: str = ""
    test_silo: str = ""


def configured_origins(data: Data) -> Origins:
    """Return what a run's configuration wants to know of the images."""
    return Origins(data.partition == NATURAL, data.silo_column, data.group_column, data.test_silo)


def split_test(data: LabelledImages, test_silo: str, seed: int) -> Folds:
    """Split a dataset that has no test fold: 80/20 within every silo, stratified, no group on both sides.

    Args:
        data: all images. Without silos they are split as one.
        test_silo: silo whose images are the test fold instead; empty: none.
        seed: decides the split, together with labels, silos and groups.

    Raises:
        UserError: there is no such silo, or no other; or every group is too large to be held out.
    """
    if test_silo:
        if data.silos is None:
            raise _unknown_silos(f"test-silo = '{test_silo}'")
        _check_test_silo(test_silo, data.silos)
        mine = data.silos == test_silo
        return _with_every_class(data.subset(np.flatnonzero(~mine)), data.subset(np.flatnonzero(mine)), test_silo)
    held = []
    for where, purpose in _silos_of(data):
        rng = np.random.default_rng(derive_seed(seed, *purpose))
        groups = None if data.groups is None else data.groups[where]
        held.append(where[stratified_split(data.labels[where], TEST_SHARE, rng, groups)[1]])
    chosen = np.sort(np.concatenate(held))
    if data.groups is not None and not len(chosen):
        raise UserError(
            f"group-column: no group is small enough for a test fold of {TEST_SHARE:.0%} of the images: give folders"
            " train/ and test/, or test-silo"
        )
    return data.subset(np.setdiff1d(np.arange(len(data)), chosen)), data.subset(chosen)


def with_test_silo(folds: Folds, test_silo: str) -> Folds:
    """Give folds of a dataset's own another test fold: the images of one silo in both, which leave the train fold.

    The test images of the other silos are not used.

    Raises:
        UserError: there is no such silo, or no other.
    """
    train, test = folds
    if train.silos is None or test.silos is None:
        raise _unknown_silos(f"test-silo = '{test_silo}'")
    mine, theirs = train.silos == test_silo, test.silos == test_silo
    if not mine.any() and theirs.all():
        return folds
    _check_test_silo(test_silo, np.concatenate([train.silos, test.silos]))
    first, second = train.subset(np.flatnonzero(mine)), test.subset(np.flatnonzero(theirs))
    groups = None
    if first.groups is not None and second.groups is not None:
        groups = np.concatenate([first.groups, second.groups])
    left_out = LabelledImages(
        join_images(first.images, second.images),
        np.concatenate([first.labels, second.labels]),
        train.classes,
        np.full(len(first) + len(second), test_silo),
        groups,
    )
    return _with_every_class(train.subset(np.flatnonzero(~mine)), left_out, test_silo)


def refuse_shared_groups(train: LabelledImages, test: LabelledImages) -> None:
    """Raise UserError if a group has images in both folds."""
    if train.groups is None or test.groups is None:
        return
    if len(shared := np.intersect1d(train.groups, test.groups)):
        raise UserError(
            f"group-column: {len(shared)} groups have training and test images, such as '{visible(str(shared[0]))}':"
            " move all images of each to one side; groups of two silos that are not the same need names of their own"
        )


def natural_parts(silos: Names | None, groups: Names | None, num_clients: int) -> list[NDArray[np.int64]]:
    """Return the samples of every silo, silos sorted by name.

    Args:
        silos: (N,) names.
        groups: (N,) what each sample belongs to; None: nothing.
        num_clients: the number of silos, as it was configured.

    Raises:
        UserError: silos are not known or not ``num_clients``, or a group is at two of them.
    """
    if silos is None:
        raise _unknown_silos(f"partition = '{NATURAL}'")
    names, owners = np.unique(silos, return_inverse=True)
    if num_clients != len(names):
        raise UserError(
            f"num-clients = {num_clients}: there are {len(names)} natural silos ({visible(named(names.tolist()))}): set"
            f" num-clients = {len(names)}"
        )
    if groups is not None:
        _refuse_wandering(silos, groups)
    return [np.flatnonzero(owners == silo) for silo in range(len(names))]


def whole_groups(labels: NDArray[np.int64], groups: Names) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the most frequent class of every group, int64 (G,), and the position of every sample's group, int64 (N,).

    Args:
        labels: (N,) non-negative class labels.
        groups: (N,) names.
    """
    names, member = np.unique(groups, return_inverse=True)
    held = np.zeros((len(names), int(labels.max()) + 1), dtype=np.int64)
    np.add.at(held, (member, labels), 1)
    return held.argmax(axis=1).astype(np.int64), member.astype(np.int64)


def _silos_of(data: LabelledImages) -> list[tuple[NDArray[np.int64], tuple[str, ...]]]:
    """The images of every silo, and what their random numbers are for."""
    if data.silos is None:
        return [(np.arange(len(data)), ("image-folder-split",))]
    return [
        (np.flatnonzero(data.silos == name), ("image-folder-split", name)) for name in np.unique(data.silos).tolist()
    ]


def _check_test_silo(test_silo: str, silos: Names) -> None:
    names = np.unique(silos).tolist()
    if test_silo not in names:
        found = visible(named(names))
        raise UserError(f"test-silo = '{test_silo}': no such silo{did_you_mean(test_silo, names)} (silos: {found})")
    if len(names) == 1:
        raise UserError(f"test-silo = '{test_silo}': it is the only silo, so that none is left to train")


def _with_every_class(train: LabelledImages, left_out: LabelledImages, test_silo: str) -> Folds:
    if (lost := np.flatnonzero((train.label_counts() == 0) & (left_out.label_counts() > 0))).size:
        names = visible(named([train.classes[label] for label in lost]))
        raise UserError(f"test-silo = '{test_silo}': no other silo has images of {names}: leave these classes out")
    return train, left_out


def _unknown_silos(key: str) -> UserError:
    return UserError(f"{key}: the images do not say which silo they come from: choose another partition")


def _refuse_wandering(silos: Names, groups: Names) -> None:
    pairs = np.unique(np.stack([groups, silos]), axis=1)
    shared = [group for group, count in Counter(pairs[0].tolist()).items() if count > 1]
    if shared:
        where = pairs[1][pairs[0] == shared[0]].tolist()
        raise UserError(
            f"group-column: {len(shared)} groups are at more than one silo, such as '{visible(shared[0])}' at"
            f" {visible(named(where))}: give groups that are not the same names of their own, such as"
            f" '{visible(f'{where[0]}-{shared[0]}')}', and leave the others' images at one silo"
        )
