from __future__ import annotations

import numpy as np
import pytest
import torch

from fedsynth.evaluation import DomainClassifier
from fedsynth.evaluation.cache import extract_cached
from fedsynth.evaluation.extractors import ClassifierExtractor, Extracted, PixelExtractor

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)


class Counting(ClassifierExtractor):
    """Counts how often it computes."""

    def __init__(self, model: DomainClassifier) -> None:
        super().__init__(model)
        self.computed = 0

    def extract(self, images: np.ndarray) -> Extracted:
        """Count and compute."""
        self.computed += 1
        return super().extract(images)


def untrained(seed: int) -> DomainClassifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DomainClassifier(1, 8, 10).eval()


@pytest.fixture
def extractor() -> Counting:
    return Counting(untrained(0))


def assert_same(one: Extracted, other: Extracted) -> None:
    np.testing.assert_array_equal(one.features, other.features)
    np.testing.assert_array_equal(one.logits, other.logits)


def test_the_second_time_comes_from_the_folder(extractor, tmp_path):
    first, second = (extract_cached(extractor, IMAGES, tmp_path / "cache") for _ in range(2))
    assert extractor.computed == 1
    assert_same(first, second)
    assert (second.features.shape, second.logits.shape) == ((5, 64), (5, 10))
    assert second.features.dtype == second.logits.dtype == np.float32
    (path,) = (path for path in tmp_path.rglob("*") if path.is_file())
    np.testing.assert_array_equal(np.load(path), np.concatenate([first.features, first.logits], axis=1))


def test_other_images_another_order_and_other_weights_are_computed(extractor, tmp_path):
    answers = [extract_cached(extractor, images, tmp_path) for images in (IMAGES, IMAGES[::-1], IMAGES[:4])]
    assert extractor.computed == 3
    np.testing.assert_allclose(answers[1].features, answers[0].features[::-1], rtol=1e-4, atol=1e-6)
    other = Counting(untrained(1))
    extract_cached(other, IMAGES, tmp_path)
    assert other.computed == 1


def test_extractors_without_logits_are_kept_too(tmp_path):
    first, second = (extract_cached(PixelExtractor((8, 8, 1)), IMAGES, tmp_path) for _ in range(2))
    np.testing.assert_array_equal(first.features, second.features)
    assert second.logits is None


@pytest.mark.parametrize("damage", ["cut", "emptied", "one bit", "replaced by a whole file of fewer images"])
def test_a_damaged_file_is_computed_again_and_mended(extractor, tmp_path, damage):
    whole = extract_cached(extractor, IMAGES, tmp_path / "cache")
    (path,) = (tmp_path / "cache").rglob("*.npy")
    content = bytearray(path.read_bytes())
    if damage == "one bit":
        content[-100] ^= 1
    elif damage.startswith("replaced"):
        extract_cached(extractor, IMAGES[:4], tmp_path / "other")
        content = bytearray(next((tmp_path / "other").rglob("*.npy")).read_bytes())
    path.write_bytes(content[: {"cut": len(content) // 2, "emptied": 0}.get(damage, len(content))])
    before = extractor.computed
    assert_same(extract_cached(extractor, IMAGES, tmp_path / "cache"), whole)
    assert extractor.computed == before + 1
    extract_cached(extractor, IMAGES, tmp_path / "cache")
    assert extractor.computed == before + 1


def test_no_folder_keeps_nothing(extractor):
    for _ in range(2):
        extract_cached(extractor, IMAGES, None)
    assert extractor.computed == 2


def test_a_failed_write_leaves_no_file(extractor, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(OSError, match="no space left"):
        extract_cached(extractor, IMAGES, tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
