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


def test_each_alone_one_image_more_changes_no_other() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (400, 2, 2, 1), dtype=np.uint8)
    data = LabelledImages(images, np.arange(400) % 3, ("a", "b", "c"))
    train, holdout = split_holdout(data, 0.25, 5, each_alone=True)
    assert len(train) + len(holdout) == 400
    assert len(holdout) == pytest.approx(100, abs=4 * np.sqrt(400 * 0.25 * 0.75))
    held = {image.tobytes() for image in holdout.images}
    fewer_train, fewer_holdout = split_holdout(
        data.subset(np.delete(np.arange(400), [17, 300])), 0.25, 5, each_alone=True
    )
    gone = {images[17].tobytes(), images[300].tobytes()}
    assert {image.tobytes() for image in fewer_holdout.images} == held - gone
    assert {image.tobytes() for image in fewer_train.images} == {i.tobytes() for i in train.images} - gone
    assert {image.tobytes() for image in split_holdout(data, 0.25, 6, each_alone=True)[1].images} != held
    assert len(split_holdout(data, 0.0, 5, each_alone=True)[1]) == 0


def test_each_alone_keeps_groups_together() -> None:
    groups = np.array([f"patient {k // 4}" for k in range(200)])
    data = LabelledImages(np.zeros((200, 2, 2, 1), np.uint8), np.arange(200) % 2, ("a", "b"), groups=groups)
    train, holdout = split_holdout(data, 0.3, 1, each_alone=True)
    assert train.groups is not None
    assert holdout.groups is not None
    assert not set(train.groups) & set(holdout.groups)
    assert 0 < len(holdout) < 120
