"""What every measure expects of its arrays, refused early and by name."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedsynth.errors import UserError

ENOUGH_FOR_FRECHET = 2048
"""Below this many images an estimated covariance biases Fréchet distances upwards noticeably."""


def check_images(name: str, images: np.ndarray) -> None:
    """Raise unless ``images`` is a non-empty uint8 array (N, H, W, C), sides of 8 pixels or more, 1 or 3 channels."""
    if images.ndim != 4 or images.dtype != np.uint8:
        raise UserError(f"{name}: expected uint8 images of shape (N, H, W, C), got {images.dtype} {images.shape}")
    if len(images) == 0:
        raise UserError(f"{name}: there are no images; give at least one")
    if min(images.shape[1:3]) < 8 or images.shape[3] not in (1, 3):
        raise UserError(
            f"{name}: images of {images.shape[1:]} (height, width, channels) cannot be measured; "
            "resize them to 8 x 8 pixels or more (image-size) and convert them to 1 or 3 channels"
        )


def check_labelled_images(name: str, images: np.ndarray, labels: np.ndarray, num_classes: int) -> None:
    """As :func:`check_images`; also raise unless ``labels`` has one integer in 0..``num_classes - 1`` per image."""
    check_images(name, images)
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"{name}: expected {len(images)} integer labels, one per image, got {labels.dtype} {labels.shape}"
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise UserError(
            f"{name}: labels run from {labels.min()} to {labels.max()}, allowed are 0 to {num_classes - 1}; "
            "raise the number of classes or remap the labels"
        )


def check_same_image_shape(name: str, images: np.ndarray, expected: tuple[int, ...]) -> None:
    """Raise unless every image has the shape (H, W, C) in ``expected``."""
    if images.shape[1:] != expected:
        raise UserError(
            f"{name}: images are {images.shape[1:]}, the real training images are {expected} "
            "(height, width, channels); bring both to one size and channel count"
        )


def as_features(name: str, features: np.ndarray) -> npt.NDArray[np.float64]:
    """Return finite ``features`` (N, D) in float64; raise for another shape, fewer than two rows, NaN or infinity."""
    if features.ndim != 2:
        raise UserError(f"{name}: expected features of shape (N, D), got {features.shape}")
    if len(features) < 2:
        raise UserError(f"{name}: {len(features)} sample(s), at least 2 are needed; give more samples")
    bad = int((~np.isfinite(features).all(axis=1)).sum())
    if bad:
        raise UserError(
            f"{name}: features of {bad} of {len(features)} samples are NaN or infinite; remove these samples or "
            "check the images and the feature extractor"
        )
    return features.astype(np.float64)


def as_feature_pair(real: np.ndarray, synthetic: np.ndarray) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return both sets as by :func:`as_features`; raise unless they have one dimension D."""
    pair = as_features("real features", real), as_features("synthetic features", synthetic)
    if pair[0].shape[1] != pair[1].shape[1]:
        raise UserError(
            f"real features are {pair[0].shape[1]}-dimensional, synthetic features {pair[1].shape[1]}-dimensional; "
            "extract both with one model"
        )
    return pair
