from __future__ import annotations

import numpy as np
import pytest

from fedsynth.data.labelled_images import LabelledImages, stratified_split


def make(count: int = 6) -> LabelledImages:
    images = np.arange(count * 4, dtype=np.uint8).reshape(count, 2, 2, 1)
    return LabelledImages(images, np.arange(count, dtype=np.int64) % 3, ("a", "b", "c"))


def test_subset_keeps_order_and_classes() -> None:
    part = make().subset([4, 0])
    assert part.labels.tolist() == [1, 0]
    assert part.images[0, 0, 0, 0] == 16
    assert part.classes == ("a", "b", "c")


def test_fingerprint_sees_every_part() -> None:
    data = make()
    pixels = data.images.copy()
    pixels[0, 0, 0, 0] += 1
    others = [
        LabelledImages(pixels, data.labels, data.classes),
        LabelledImages(data.images, data.labels[::-1].copy(), data.classes),
        LabelledImages(data.images, data.labels, ("a", "b", "d")),
        LabelledImages(data.images.reshape(6, 1, 4, 1), data.labels, data.classes),
        data.subset([]),
    ]
    assert len({data.fingerprint(), *(other.fingerprint() for other in others)}) == 6
    assert data.fingerprint() == make().fingerprint()
    strided = LabelledImages(np.asfortranarray(data.images), data.labels, data.classes)
    assert strided.fingerprint() == data.fingerprint()


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (np.zeros((2, 2, 2, 1), np.float32), np.zeros(2, np.int64)),
        (np.zeros((2, 2, 2, 1), np.uint8), np.zeros(3, np.int64)),
        (np.zeros((2, 2, 2, 1), np.uint8), np.array([0, 1], np.int64)),
    ],
)
def test_inconsistent_arrays_are_refused(images: np.ndarray, labels: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"images must|labels must"):
        LabelledImages(images, labels, ("only",))


@pytest.mark.parametrize("fraction", [0.0, 0.07, 0.99])
def test_stratified_split_is_a_partition_with_proportional_classes(fraction: float) -> None:
    labels = np.repeat(np.arange(4), [100, 50, 1, 7])
    stay, taken = stratified_split(labels, fraction, np.random.default_rng(3))
    assert sorted([*stay, *taken]) == list(range(158))
    assert set(labels[stay]) == {0, 1, 2, 3}
    for label, count in enumerate([100, 50, 1, 7]):
        assert abs((labels[taken] == label).sum() - fraction * count) < 2
    assert len(taken) <= np.ceil(fraction * 158)


def test_stratified_split_rounds_up_and_takes_the_odd_image_from_the_larger_class() -> None:
    labels = np.zeros(100, np.int64)
    assert len(stratified_split(labels, 0.07, np.random.default_rng(0))[1]) == 7
    assert len(stratified_split(labels, 0.071, np.random.default_rng(0))[1]) == 8

    # 5 of 50: exact shares 1.4, 0.2 and 3.4.
    labels = np.repeat([0, 1, 2], [14, 2, 34])
    taken = stratified_split(labels, 0.1, np.random.default_rng(0))[1]
    assert np.bincount(labels[taken]).tolist() == [1, 0, 4]
