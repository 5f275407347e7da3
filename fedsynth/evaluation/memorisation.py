"""Evidence that synthetic images copy training images.

A low number here is no proof of privacy: only (ε, δ) is a guarantee, these measures are evidence beside it. All of them
depend on the space, so name it with the number: the pixels show copies, features also show their variations.

A generator of latents cannot return a training image but only what its autoencoder makes of it. A sample near either
form of a training image is near that image; and test images are compared as the autoencoder makes them, so that fresh
samples still come as near as they do. Without that a model that repeats its training images looks innocent as soon as
the autoencoder changes an image by more than neighbours differ. One that was trained on mirrored or turned images can
return those: each variant is one more form of a training image, and test images are compared with all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from fedsynth.errors import UserError
from fedsynth.evaluation.array_checks import as_features
from fedsynth.evaluation.image_set import Images, flat
from fedsynth.evaluation.manifold import squared_distance_blocks

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]
Change = Callable[[Images], Images]
"""Makes images (N, H, W, C) of as many, N >= 1."""

_PART_VALUES = 2**22
"""Pixels of training images compared at once: 32 MB in float64, of which there are a few copies."""

# Test images nearer to a training image than this percentile are as near as real images come by chance.
COPY_PERCENTILE = 5.0

COPYING_SHARE = 0.4
"""A model with a larger ``copied_share`` is said to copy: an honest one has it by chance in 3 cases of 100 where the
percentile is that of 8 test images, in 3 of 1,000 where of 15. Models trained far too long have .8 and more."""


@dataclass(frozen=True)
class Forms:
    """In which forms a generator may return a training image.

    Attributes:
        variants: each gives one variant of every image, in which the generator may have seen it besides as it is.
        reconstruct: what the autoencoder of the generator makes of images; None: it has none.
    """

    variants: Sequence[Change] = ()
    reconstruct: Change | None = None

    def seen(self, images: Images) -> list[Images]:
        """Return training images in every form in which the generator may have seen them, first as they are."""
        return [images, *(variant(images) for variant in self.variants)]

    def returned(self, images: Images) -> list[Images]:
        """Return training images in every form in which they may come back: as seen, then as reconstructed."""
        seen = self.seen(images)
        return seen + [self.reconstruct(form) for form in seen] if self.reconstruct else seen

    def unseen(self, images: Images) -> Images:
        """Return test images as they are compared."""
        return self.reconstruct(images) if self.reconstruct else images


AS_THEY_ARE = Forms()


@dataclass(frozen=True)
class Memorisation:
    """How near synthetic samples lie to training samples, beside real samples that were never trained on.

    Attributes:
        synthetic_count, train_count, test_count: samples in each set; distances shrink as the training set grows.
        nearest_train_distance: median distance of a synthetic sample to its nearest training sample.
        test_nearest_train_distance: the same of a test sample.
        copy_distance: the 5th percentile of the test samples' distances to their nearest training sample: as near as
            real samples come by chance.
        nearest_neighbour_ratio: the first by the second; below 1 the synthetic samples lie nearer to training samples
            than fresh real ones do.
        copied_share: share of synthetic samples at most ``copy_distance`` from a training sample; about .05 without
            copying.
        authenticity: share of authentic synthetic samples (:func:`memorisation`).
        test_authenticity: the same of the test samples. Compare with it and not with 1/2: fresh draws reach 1/3 in one
            dimension, .41 in three and .70 for a Gaussian in 16, where few training samples are everyone's neighbour.
    """

    synthetic_count: int
    train_count: int
    test_count: int
    nearest_train_distance: float
    test_nearest_train_distance: float
    copy_distance: float
    nearest_neighbour_ratio: float
    copied_share: float
    authenticity: float
    test_authenticity: float

    def row(self) -> dict[str, int | float]:
        """Return flat, JSON-ready columns in kebab-case."""
        return {name.replace("_", "-"): value for name, value in asdict(self).items()}


def memorisation(synthetic: np.ndarray, train: np.ndarray, test: np.ndarray, forms: int = 1) -> Memorisation:
    """Compare distances to the training set between synthetic and unseen real samples.

    Authenticity follows Alaa et al. 2022 (arXiv 2102.08921): a synthetic sample is authentic if it lies
    farther from its nearest training sample than that one lies from its own nearest other training sample. Ties are not
    authentic, so a copy of a training sample that occurs twice is found. Memory is linear in the numbers of samples.

    Args:
        synthetic: features or flattened pixels (N, D), N >= 2.
        train: (forms·M, D), M >= 2, everything that any of the models was trained on.
        test: (L, D), L >= 2, from the distribution of ``train`` and never trained on.
        forms: in how many forms ``train`` has each of its samples, all of them in one form after all in another.

    Raises:
        UserError: unequal D, fewer than two samples, NaN or infinite values, or more than half of the test samples
            occur in the training set.
    """
    synthetic, test, train = centred_samples(synthetic=synthetic, test=test, train=train)
    indices, distances = nearest_neighbours(synthetic, train)
    test_indices, test_distances = nearest_neighbours(test, train)
    of_synthetic = float(np.median(distances))
    of_test = float(np.median(test_distances))
    copied = _copied_share(distances, test_distances)
    copy_distance = float(np.percentile(test_distances, COPY_PERCENTILE))
    return Memorisation(
        synthetic_count=len(synthetic),
        train_count=len(train) // forms,
        test_count=len(test),
        nearest_train_distance=of_synthetic,
        test_nearest_train_distance=of_test,
        copy_distance=copy_distance,
        nearest_neighbour_ratio=of_synthetic / of_test,
        copied_share=copied,
        authenticity=_authenticity(indices, distances, train, forms),
        test_authenticity=_authenticity(test_indices, test_distances, train, forms),
    )


def memorisation_of_images(synthetic: Images, train: Images, test: Images, forms: Forms = AS_THEY_ARE) -> Memorisation:
    """Return :func:`memorisation` of images in pixels.

    Args:
        synthetic, train, test: uint8 images (N, H, W, C).
        forms: in which the generators may return training images.

    Raises:
        UserError: as :func:`memorisation` does.
    """
    returned = forms.returned(train)
    everything = np.concatenate(returned) if len(returned) > 1 else train
    return memorisation(flat(synthetic), flat(everything), flat(forms.unseen(test)), len(returned))


def copied_share(synthetic: Images, train: Images, test: Images, forms: Forms = AS_THEY_ARE) -> float:
    """Return the ``copied_share`` of :func:`memorisation_of_images`; ``train`` may be larger than memory.

    Args:
        synthetic: uint8 images (N, H, W, C), N >= 2.
        train: (M, H, W, C), M >= 2, compared part by part.
        test: (L, H, W, C), L >= 2.
        forms: as there.

    Raises:
        UserError: as :func:`memorisation` does.
    """
    count = max(1, min(-(-train.size // _PART_VALUES), len(train) // 2))
    bounds = [len(train) * part // count for part in range(count + 1)]

    def parts() -> Iterator[Images]:
        return (train[first:end] for first, end in pairwise(bounds))

    mean = sum(flat(part).sum(axis=0, dtype=np.int64) for part in parts()) / len(train)
    named = {"synthetic": synthetic, "test": forms.unseen(test)}
    points = np.concatenate([as_features(name, flat(images)) for name, images in named.items()]) - mean
    nearest = np.full(len(points), np.inf)
    for part in parts():
        for form in forms.returned(part):
            np.minimum(nearest, nearest_neighbours(points, as_features("train", flat(form)) - mean)[1], out=nearest)
    return _copied_share(nearest[: len(synthetic)], nearest[len(synthetic) :])


def _copied_share(distances: Array, test_distances: Array) -> float:
    if float(np.median(test_distances)) == 0.0:
        raise UserError("test: more than half of the samples are training samples too; give images never trained on")
    return float(np.mean(distances <= np.percentile(test_distances, COPY_PERCENTILE)))


def nearest_neighbours(
    points: Array, references: Array, own: Indices | None = None, forms: int = 1
) -> tuple[Indices, Array]:
    """Find the nearest reference of each point, a block of points at a time.

    Args:
        points: finite (N, D), near the origin beside their spread.
        references: finite (M, D), likewise; M >= 1, with ``own`` M >= 2.
        own: for each point the index (N,) of the reference that it is itself and that does not count, in any form.
        forms: as for :func:`memorisation`.

    Returns:
        Indices (N,) into ``references`` and Euclidean distances (N,), exactly 0 for equal samples.
    """
    indices = np.empty(len(points), dtype=np.intp)
    nearest = np.empty(len(points))
    for rows, squared in squared_distance_blocks(points, references):
        if own is not None:
            of_forms = squared.reshape(len(squared), forms, -1)
            of_forms[np.arange(len(squared)), :, own[rows] % of_forms.shape[2]] = np.inf
        indices[rows] = squared.argmin(axis=1)
        # |x|² + |y|² - 2xy finds the neighbour but leaves a round-off where a copy must be at distance 0.
        nearest[rows] = np.linalg.norm(points[rows] - references[indices[rows]], axis=1)
    return indices, nearest


def _authenticity(indices: Indices, distances: Array, train: Array, forms: int) -> float:
    copied_from, position = np.unique(indices, return_inverse=True)
    _, own_distances = nearest_neighbours(train[copied_from], train, copied_from, forms)
    return float(np.mean(distances > own_distances[position]))


def centred_samples(**sets: np.ndarray) -> list[Array]:
    """Check sets (N, D) as :func:`as_features` does, under their names, and move the mean of the last to the origin.

    Raises:
        UserError: unequal D, fewer than two samples, NaN or infinite values.
    """
    samples = {name: as_features(name, values) for name, values in sets.items()}
    dimensions = {name: values.shape[1] for name, values in samples.items()}
    if len(set(dimensions.values())) > 1:
        raise UserError(f"samples have unequal numbers of values {dimensions}; bring all to one space")
    *_, last = samples.values()
    mean = last.mean(axis=0)
    return [values - mean for values in samples.values()]
