from __future__ import annotations

import numpy as np

from fedsynth.duplicates import conflicts, count_shared, digests, repeats


def test_equal_pixels_are_found_and_no_others() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
    images[3], images[5] = images[0], images[0]
    images[4] = images[1]
    images[4, 0, 0, 0] ^= 1  # one bit of one pixel
    found = digests(images)
    pairs = [(j, i) for j in range(6) for i in range(j) if (images[i] == images[j]).all()]
    assert repeats(found) == [(3, 0), (5, 0)]
    assert {k for k, _ in pairs} == {k for k, _ in repeats(found)}
    assert count_shared(images[3:], images[:3]) == 2
    assert count_shared(images[:3], images[3:]) == 1
    assert conflicts(found, np.array([0, 1, 1, 0, 1, 0])) == []
    assert conflicts(found, np.array([0, 1, 1, 2, 1, 3])) == [(0, 3)], "one pair per picture"


def test_without_images_nothing_is_found() -> None:
    none = np.zeros((0, 4, 4, 1), np.uint8)
    assert count_shared(none, none) == 0
    assert repeats(digests(none)) == conflicts(digests(none), np.zeros(0, np.int64)) == []
