from __future__ import annotations

import numpy as np
import pytest

from fedsynth.config import RunConfig
from fedsynth.data import (
    LabelledImages,
    load_dataset,
    load_federation,
    partition,
    simulated_silo,
    split_holdout,
)
from fedsynth.errors import UserError

TRAIN, _ = load_dataset("digits")


@pytest.mark.parametrize("fraction", [0.0, 0.9])
def test_every_class_stays_in_train(fraction: float) -> None:
    for client, indices in enumerate(partition(TRAIN.labels, "dirichlet", 10, 0)):
        silo = simulated_silo(TRAIN, indices, client, fraction, 0)
        own = TRAIN.subset(indices).label_counts()
        assert ((silo.train.label_counts() > 0) == (own > 0)).all()
        assert (silo.train.label_counts() + silo.holdout.label_counts()).tolist() == own.tolist()
        assert len(silo.holdout) <= np.ceil(fraction * len(indices))


def test_holdout_has_the_asked_share_and_no_train_image() -> None:
    numbered = LabelledImages(np.arange(100, dtype=np.uint8).reshape(-1, 1, 1, 1), np.arange(100) % 4, tuple("abcd"))
    train, holdout = split_holdout(numbered, 0.1, 7)
    assert len(holdout) == 10
    assert sorted([*train.images.ravel(), *holdout.images.ravel()]) == list(range(100))
    assert holdout.label_counts().max() <= 3


def test_same_data_and_seed_same_silo() -> None:
    indices = partition(TRAIN.labels, "iid", 10, 0)[3]
    silo, again, other_seed, other_name = (
        simulated_silo(TRAIN, indices, client, 0.1, seed) for client, seed in ((3, 0), (3, 0), (3, 1), (4, 0))
    )
    assert silo.name == "silo-3"
    assert silo.fingerprint == again.fingerprint
    assert len({silo.fingerprint, other_seed.fingerprint, other_name.fingerprint}) == 3
    assert silo.holdout.fingerprint() == other_name.holdout.fingerprint()


def test_the_union_is_what_all_silos_train_on() -> None:
    config = RunConfig.from_run_config({"num-clients": 4, "alpha": 0.5})
    federation = load_federation(config)
    silos = [federation.silo(k, config).train for k in range(4)]
    union = federation.union(config)
    assert (union.images == np.concatenate([silo.images for silo in silos])).all()
    assert union.labels.tolist() == [label for silo in silos for label in silo.labels.tolist()]


def test_groups_too_large_to_be_held_out_are_said(caplog: pytest.LogCaptureFixture) -> None:
    data = TRAIN.subset(np.arange(100))
    thirds = LabelledImages(
        data.images, data.labels, data.classes, groups=np.array(["a", "b", "c", "d"])[np.arange(100) % 4]
    )
    assert len(simulated_silo(thirds, np.arange(100), 2, 0.1, 0).holdout) == 0
    assert caplog.messages == [
        "silo-2: no images are held out: each of the 4 groups is too large for holdout-fraction = 0.1"
    ]
    caplog.clear()
    assert len(simulated_silo(thirds, np.arange(100), 2, 0.2, 0).holdout) == 25
    assert len(simulated_silo(thirds, np.arange(100), 2, 0.0, 0).holdout) == 0
    assert not caplog.messages


@pytest.mark.parametrize("fraction", [1.0, float("nan")])
def test_fraction_out_of_range(fraction: float) -> None:
    with pytest.raises(UserError, match="holdout-fraction"):
        split_holdout(TRAIN, fraction, 0)
