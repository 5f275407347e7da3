"""Real digits and one classifier of them, shared by the tests of this room."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from fedsynth.evaluation import FEATURE_SEED, DomainClassifier
from fedsynth.evaluation.cache import classifier_cached


@dataclass(frozen=True)
class Digits:
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


@pytest.fixture(scope="session")
def digits() -> Digits:
    """1,437 training and 360 test digits, uint8 (N, 8, 8, 1)."""
    raw = load_digits()
    images = np.rint(raw.images * 255 / 16).astype(np.uint8)[..., None]
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, raw.target, test_size=360, stratify=raw.target, random_state=0
    )
    return Digits(train_images, train_labels, test_images, test_labels)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def classifier(digits: Digits, cache: Path) -> DomainClassifier:
    """Kept in ``cache``, where an evaluation of these digits finds it."""
    return classifier_cached(digits.train_images, digits.train_labels, 10, FEATURE_SEED, cache)
