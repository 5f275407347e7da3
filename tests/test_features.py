"""The study of feature spaces: its sets are what their names say, and its probe tells classes apart."""

from __future__ import annotations

import numpy as np

from experiments.features import distances, probe, spoiled
from fedsynth.evaluation.networks.extractor import Extracted


def test_spoiled_images_are_blurred_or_noisy_and_keep_their_means() -> None:
    images = np.random.default_rng(0).integers(60, 196, (20, 16, 16, 3), np.uint8)
    blurred, noisy = (each.astype(float) for each in spoiled(images, seed=0).values())
    assert blurred.std() < images.std() / 2
    assert abs((noisy - images).std() - 20) < 1
    assert max(abs(blurred.mean() - images.mean()), abs(noisy.mean() - images.mean())) < 1


def test_the_probe_and_the_distances_see_two_separate_clusters() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 2
    features = (rng.normal(size=(120, 4)) + 8 * labels[:, None]).astype(np.float32)
    one, other = Extracted(features[:60]), Extracted(features[60:])
    assert probe(one, labels[:60], other, labels[60:]) == 1
    near, far = distances(one, {"near": other, "far": Extracted(other.features + 50)})
    assert float(far["frechet-distance"]) > 100 * float(near["frechet-distance"])
    assert float(far["coverage"]) == 0
