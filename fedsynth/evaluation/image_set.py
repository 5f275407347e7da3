"""A named set of labelled images, and random subsets of it that keep its class shares."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedsynth.errors import UserError
from fedsynth.evaluation.array_checks import check_labelled_images, check_same_image_shape
from fedsynth.seeding import derive_seed

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.integer]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images under the name that messages call them by.

    Attributes:
        name: such as ``synthetic images``; it also seeds the random subsets, so that two sets get different ones.
        images: uint8 (N, H, W, C).
        labels: integers (N,).
    """

    name: str
    images: Images
    labels: Labels

    def __len__(self) -> int:
        """Count the images."""
        return len(self.images)

    def check(self, num_classes: int, image_shape: tuple[int, ...]) -> None:
        """Raise UserError unless there are two images of ``image_shape`` (H, W, C), labelled below ``num_classes``."""
        check_labelled_images(self.name, self.images, self.labels, num_classes)
        check_same_image_shape(self.name, self.images, image_shape)
        if len(self) < 2:
            raise UserError(f"{self.name}: 1 image, at least 2 are needed; give more images (num-samples)")

    def subset(self, size: int, seed: int) -> ImageSet:
        """Return ``size`` of the images with the set's class shares, the same ones for a seed."""
        if size >= len(self):
            return self
        rng = np.random.default_rng(derive_seed(seed, "evaluation-subset", self.name))
        chosen = stratified_subset(self.labels, size, rng)
        return ImageSet(self.name, self.images[chosen], self.labels[chosen])

    def joined(self, other: ImageSet) -> ImageSet:
        """Return the images of both."""
        return ImageSet(
            f"{self.name} and {other.name}",
            np.concatenate([self.images, other.images]),
            np.concatenate([self.labels, other.labels]),
        )


def stratified_subset(labels: Labels, size: int, rng: np.random.Generator) -> npt.NDArray[np.intp]:
    """Return ``size`` distinct, sorted indices with the class shares of ``labels`` up to rounding."""
    quantile = np.empty(len(labels))
    shuffled = rng.permutation(len(labels))
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        quantile[members] = (np.arange(len(members)) + rng.random()) / len(members)
    return np.sort(np.argsort(quantile)[:size])


def matched_by_class(
    one: Labels, other: Labels, most: int, rng: np.random.Generator
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return sorted indices of two random subsets that hold equally many images of every class.

    Args:
        one, other: class of every image.
        most: images wanted at most on each side; the classes keep their shares of what can be matched.
        rng: draws the subsets.
    """
    sides: tuple[list[npt.NDArray[np.intp]], list[npt.NDArray[np.intp]]] = ([], [])
    for label in np.intersect1d(one, other):
        members = [rng.permutation(np.flatnonzero(labels == label)) for labels in (one, other)]
        count = min(map(len, members))
        for side, indices in zip(sides, members, strict=True):
            side.append(indices[:count])
    matched = [np.concatenate([*side, np.empty(0, np.intp)]) for side in sides]
    kept = stratified_subset(one[matched[0]], most, rng)
    return np.sort(matched[0][kept]), np.sort(matched[1][kept])


def flat(images: Images) -> Images:
    """Return images (N, H, W, C) as rows of pixels (N, H·W·C)."""
    return images.reshape(len(images), -1)
