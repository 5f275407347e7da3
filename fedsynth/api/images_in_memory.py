"""Labelled images that a program holds, whatever they are held in."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedsynth.data import LabelledImages
from fedsynth.errors import UserError
from fedsynth.output import SyntheticDataset

InMemory: TypeAlias = LabelledImages | SyntheticDataset | tuple[Any, Any] | Iterable[Any]
"""A set of ours; arrays of images and labels; or what yields pairs or rows of ``image`` and ``label``, such as a
dataset of torchvision or of Hugging Face's ``datasets``."""


def is_pair_of_arrays(given: object) -> bool:
    """Whether this is one set, as images and labels, and not two sets."""
    return isinstance(given, tuple) and len(given) == 2 and getattr(given[1], "ndim", None) == 1


def labelled_images(what: str, given: InMemory, classes: tuple[str, ...] | None = None) -> LabelledImages:
    """Return images and labels, with the labels as positions in ``classes``.

    Args:
        what: the set, for errors.
        given: the set. Images are uint8 (N, H, W, C) or (N, H, W), all of one size, labels integers (N,).
        classes: names of the classes; None: the set's own, for one that names none the numbers.

    Raises:
        UserError: images or labels are not like that, or a class is not among ``classes``.
    """
    if isinstance(given, LabelledImages | SyntheticDataset):
        images, labels, own = given.images, given.labels, given.classes
    elif is_pair_of_arrays(given):
        (images, labels), own = map(np.asarray, given), ()
    else:
        images, labels = _from_rows(what, given)
        own = _class_names(given)
    images = images[..., np.newaxis] if images.ndim == 3 else images
    _refuse_channels_first(what, images)
    labels = _checked(what, labels, len(images))
    names = own or classes or tuple(map(str, range(int(labels.max()) + 1)))
    if labels.min() < 0 or labels.max() >= len(names):
        outside = int(labels.min() if labels.min() < 0 else labels.max())
        raise UserError(f"{what}: label {outside} is out of range: 0 to {len(names) - 1} stand for {', '.join(names)}")
    try:
        found = LabelledImages(images, labels, names)
    except ValueError as error:
        raise UserError(f"{what}: {error}") from error
    return found if classes is None or names == classes else _renamed(what, found, classes)


def _checked(what: str, labels: NDArray[Any], number: int) -> NDArray[np.int64]:
    if not number or labels.shape != (number,) or labels.dtype.kind not in "iu":
        raise UserError(
            f"{what}: {number} images with labels {labels.dtype} {labels.shape}: give one or more images, and an"
            " integer label for each"
        )
    return labels.astype(np.int64)


def _refuse_channels_first(what: str, images: NDArray[Any]) -> None:
    """Raise for (N, C, H, W), as torch has them."""
    if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[3] not in (1, 3):
        raise UserError(
            f"{what}: images of {images.shape}: channels come last, (N, H, W, C); turn them with"
            " images.transpose(0, 2, 3, 1)"
        )


def _from_rows(what: str, given: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    if isinstance(given, np.ndarray) or not isinstance(given, Iterable):
        raise UserError(f"{what}: {_kind(given)} has no labels: give (images, labels), with an integer for each image")
    rows = [_pair(what, row) for row in given]
    images = [np.asarray(image) for image, _ in rows]
    if len(shapes := {image.shape for image in images}) > 1:
        raise UserError(f"{what}: images of {len(shapes)} shapes, {min(shapes)} to {max(shapes)}: bring all to one")
    return np.array(images), np.array([label for _, label in rows], dtype=np.int64)


def _pair(what: str, row: Any) -> tuple[Any, int]:
    """Return image and label of one row of a set."""
    try:
        image, label = (row["image"], row["label"]) if isinstance(row, Mapping) else (row[0], row[1])
        return image, operator.index(label.item() if isinstance(label, np.ndarray) else label)
    except (TypeError, LookupError, ValueError):
        raise UserError(
            f"{what}: it must yield pairs of an image and its integer label, and yields {_kind(row)}; or give"
            " (images, labels)"
        ) from None


def _kind(given: object) -> str:
    shape = getattr(given, "shape", None)
    return f"an object of {type(given).__name__}" + (f" {tuple(shape)}" if isinstance(shape, tuple) else "")


def _class_names(given: Any) -> tuple[str, ...]:
    """Return the names that a dataset of torchvision or of ``datasets`` gives its classes; none if it does not."""
    features = getattr(given, "features", None)
    names = getattr(features["label"], "names", None) if isinstance(features, Mapping) else None
    return tuple(map(str, names or getattr(given, "classes", None) or ()))


def _renamed(what: str, found: LabelledImages, classes: tuple[str, ...]) -> LabelledImages:
    if unknown := [name for name in found.classes if name not in classes]:
        raise UserError(
            f"{what}: class '{unknown[0]}' is not one of the real images' ({', '.join(classes)}): name both alike"
        )
    positions = np.array([classes.index(name) for name in found.classes], dtype=np.int64)
    return LabelledImages(found.images, positions[found.labels], classes)
