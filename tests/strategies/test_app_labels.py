from __future__ import annotations

import math

import numpy as np
import torch

from fedsynth.config import RunConfig
from strategies.app import draw_labels
from strategies.conversation.census import Census, Member


def census_of(*counts: list[int]) -> Census:
    return Census(Member(k, f"silo-{k}", sum(row), row) for k, row in enumerate(counts))


def test_balanced_labels_share_the_images_equally() -> None:
    config = RunConfig.from_run_config({"num-samples": 11})
    labels = draw_labels(config, census_of([5, 0, 1], [3, 1, 0]))
    assert labels.dtype == torch.int64
    assert labels.bincount().tolist() == [4, 4, 3]


def test_observed_labels_follow_the_silos_counts() -> None:
    config = RunConfig.from_run_config({"num-samples": 20000, "labels": "observed"})
    labels = draw_labels(config, census_of([50, 0, 10], [30, 0, 10]))
    shares = np.bincount(labels, minlength=3) / 20000
    np.testing.assert_allclose(shares, [0.8, 0.0, 0.2], atol=4 * math.sqrt(0.16 / 20000))
    assert shares[1] == 0
    other = draw_labels(
        RunConfig.from_run_config({"num-samples": 20000, "labels": "observed", "seed": 1}), census_of([80, 0, 20])
    )
    assert not torch.equal(labels, other)
