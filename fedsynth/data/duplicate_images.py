"""What is said of pictures that a data set holds more than once; nothing is left out for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedsynth.data.labelled_images import LabelledImages
from fedsynth.duplicates import conflicts, digests, repeats


def describe_repeats(data: LabelledImages, files: Sequence[Path]) -> str:
    """Say how many images repeat another one, and which picture stands under two classes; empty if none does.

    Args:
        data: the images.
        files: where they come from, in their order, as they are to be shown.
    """
    found = digests(data.images)
    said = []
    if copies := repeats(found):
        k, first = copies[0]
        said.append(f"{len(copies)} of {len(data)} images repeat another one, as {files[k]} does {files[first]}")
    if unequal := conflicts(found, data.labels):
        first, k = unequal[0]
        said.append(
            f"{_pictures(len(unequal))} under two classes or more, such as {files[first]} and {files[k]}: one of the"
            " labels is wrong"
        )
    return "; ".join(said)


def describe_shared(train: LabelledImages, test: LabelledImages, what: str) -> str:
    """Say how many images of ``test``, which ``what`` names, are in ``train`` too; empty if none is."""
    return _describe_shared(digests(train.images), test, what)


def _describe_shared(found: Sequence[bytes], test: LabelledImages, what: str) -> str:
    known = set(found)
    shared = sum(digest in known for digest in digests(test.images))
    return f"{shared} of {len(test)} {what} are training images too" if shared else ""


def describe_between_silos(train: LabelledImages, test: LabelledImages, parts: Sequence[NDArray[np.int64]]) -> str:
    """Say which pictures of a simulation are held by two silos, stand under two classes, or are test images too.

    Args:
        train: the train fold.
        test: the server's test fold.
        parts: indices into ``train``, one array per silo.
    """
    held = np.concatenate(parts)
    owners = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    found = digests(train.images, held)
    said = [_describe_shared(found, test, "test images")]
    if apart := conflicts(found, owners):
        said.append(f"{_pictures(len(apart))} at more than one silo")
    if unequal := conflicts(found, train.labels[held]):
        said.append(f"{_pictures(len(unequal))} under two classes or more")
    return "; ".join(filter(None, said))


def _pictures(count: int) -> str:
    return "1 picture stands" if count == 1 else f"{count} pictures stand"
