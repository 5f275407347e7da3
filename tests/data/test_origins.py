from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedsynth.config import RunConfig
from fedsynth.data import (
    PARTITIONS,
    LabelledImages,
    Origins,
    label_counts,
    load_dataset,
    load_federation,
    partition,
    partition_parameters,
    split_holdout,
    split_test,
)
from fedsynth.data.labelled_images import stratified_split
from fedsynth.errors import UserError

Names = Any


def hospitals(seed: int = 0) -> LabelledImages:
    """Three hospitals of 40, 25 and 15 patients with 1 to 8 images each, of mixed classes; one lacks class c."""
    rng = np.random.default_rng(seed)
    silos, groups, labels = [], [], []
    for silo, patients in (("b-town", 40), ("a-town", 25), ("c-town", 15)):
        for patient in range(patients):
            count = int(rng.integers(1, 9))
            silos += [silo] * count
            groups += [f"{silo}/{patient}"] * count
            labels += rng.integers(0, 2 if silo == "c-town" else 3, count).tolist()
    images = np.arange(len(labels), dtype=np.uint32).view(np.uint8).reshape(-1, 1, 1, 4)[..., :3].copy()
    return LabelledImages(images, np.array(labels), tuple("abc"), np.array(silos), np.array(groups))


def apart(*sides: LabelledImages) -> bool:
    """Whether no group has images on two sides."""
    found = [set[str](np.unique(side.groups).tolist()) for side in sides if side.groups is not None]
    assert len(found) == len(sides)
    return sum(map(len, found)) == len(set.union(*found))


def numbers(data: LabelledImages) -> list[int]:
    """The images' numbers."""
    return (data.images.reshape(-1, 3).astype(int) @ [1, 256, 65536]).tolist()


def config_of(**data: Any) -> RunConfig:
    settings = {"dataset": "tests.data.test_origins:hospital_folds", "partition": "natural", "num-clients": 3}
    return RunConfig.from_run_config({**settings, **{key.replace("_", "-"): value for key, value in data.items()}})


def hospital_folds(root: object, image_size: object) -> tuple[LabelledImages, LabelledImages]:
    """A plug-in's data set."""
    return split_test(hospitals(), "", 0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("fraction", [0.1, 0.3])
def test_groups_stay_whole_and_near_the_asked_share(fraction: float, seed: int) -> None:
    data = hospitals(seed)
    train, holdout = split_holdout(data, fraction, seed)
    assert sorted(numbers(train) + numbers(holdout)) == list(range(len(data)))
    assert apart(train, holdout)
    assert np.abs(holdout.label_counts() - fraction * data.label_counts()).max() <= 3, "and stratified"
    assert (numbers(split_holdout(data, fraction, seed)[1])) == numbers(holdout)
    assert numbers(split_holdout(data, fraction, seed + 1)[1]) != numbers(holdout)


@pytest.mark.parametrize(
    ("sizes", "fraction"), [([50, 50], 0.2), ([90, 5, 5], 0.1), ([25] * 4, 0.1), ([1] * 100, 0.0), ([40, 30, 30], 0.2)]
)
def test_held_out_groups_are_less_than_twice_the_asked_share(sizes: list[int], fraction: float) -> None:
    groups = np.repeat([f"p{k}" for k in range(len(sizes))], sizes)
    _, held = stratified_split(np.zeros(100, np.int64), fraction, np.random.default_rng(0), groups)
    expected = {(50, 50): 0, (90, 5, 5): 10, (25,) * 4: 0, (1,) * 100: 0, (40, 30, 30): 30}[tuple(sizes)]
    assert len(held) == expected


def test_many_groups_of_one_class_are_held_out_although_each_is_larger_than_its_class_share() -> None:
    labels = np.repeat(np.arange(50), 20)
    groups = np.repeat([f"p{k}" for k in range(100)], 10)
    stay, held = stratified_split(labels, 0.2, np.random.default_rng(0), groups)
    assert len(held) == 200
    assert set(labels[stay]) == set(range(50)), "no class leaves"


def test_singleton_groups_are_held_out_like_images() -> None:
    labels = np.random.default_rng(0).integers(0, 7, 500)
    groups = np.array([f"p{k}" for k in range(500)])
    _, one = stratified_split(labels, 0.15, np.random.default_rng(0), groups)
    _, other = stratified_split(labels, 0.15, np.random.default_rng(0))
    assert np.bincount(labels[one]).tolist() == np.bincount(labels[other]).tolist()


def test_every_silo_gives_test_images_and_no_group_is_on_both_sides() -> None:
    data = hospitals()
    train, test = split_test(data, "", 3)
    assert sorted(numbers(train) + numbers(test)) == list(range(len(data)))
    assert apart(train, test)
    for silo in np.unique(data.silos):
        all_, held = (label_counts(x.labels, [np.flatnonzero(x.silos == silo)], 3)[0] for x in (data, test))
        assert np.abs(held - 0.2 * all_).max() <= 3, "stratified within the silo"


def test_test_images_of_a_silo_do_not_depend_on_the_others() -> None:
    data = hospitals()
    without = data.subset(np.flatnonzero(data.silos != "b-town"))
    (_, test), (_, fewer) = split_test(data, "", 0), split_test(without, "", 0)
    assert numbers(fewer) == [number for number in numbers(test) if data.silos[number] != "b-town"]


@pytest.mark.parametrize("own_folds", [False, True])
def test_a_named_silo_is_the_test_fold_and_trains_nowhere(own_folds: bool) -> None:
    data = hospitals()
    train, test = (
        load_dataset(config_of().data.dataset, origins=Origins(natural=True, test_silo="a-town"))
        if own_folds
        else split_test(data, "a-town", 0)
    )
    expected = np.flatnonzero(data.silos == "a-town").tolist()
    assert sorted(numbers(test)) == expected
    assert set(train.silos) == {"b-town", "c-town"}
    kept = hospital_folds(None, None)[0] if own_folds else data
    assert numbers(train) == [k for k in numbers(kept) if k not in set(expected)], "test images stay test images"


def test_natural_silos_own_their_images() -> None:
    config = config_of()
    federation = load_federation(config)
    assert federation.silo_names == ("a-town", "b-town", "c-town")
    silos = [federation.silo(k, config) for k in range(3)]
    for k, (name, silo) in enumerate(zip(federation.silo_names, silos, strict=True)):
        assert silo.name == f"silo-{k}"
        assert {*silo.train.silos, *silo.holdout.silos} == {name}
        assert len(silo.holdout)
    assert apart(federation.test, *(side for silo in silos for side in (silo.train, silo.holdout)))
    record = federation.manifest(config)
    assert [client["silo"] for client in record["clients"]] == list(federation.silo_names)
    assert sum(len(client["indices"]) for client in record["clients"]) == len(federation.train)
    thin = load_federation(config_of(samples_per_client=20))
    assert sum(map(len, thin.parts)) == 60


@pytest.mark.parametrize("scheme", list(PARTITIONS))
def test_no_scheme_shares_a_group_between_silos(scheme: str) -> None:
    data = hospitals()
    parts, again = (partition(data.labels, scheme, 3, 1, groups=data.groups) for _ in range(2))
    assert all((a == b).all() for a, b in zip(parts, again, strict=True))
    assert all(map(len, parts))
    assert sorted(np.concatenate(parts)) == list(range(len(data)))
    assert apart(*map(data.subset, parts))
    thinned = partition(data.labels, scheme, 3, 1, groups=data.groups, samples_per_client=20)
    assert apart(*map(data.subset, thinned))
    assert sum(map(len, thinned)) == 60


def test_groups_of_one_class_each_keep_what_a_scheme_promises() -> None:
    labels = np.repeat(np.arange(10), 60)
    groups = np.array([f"p{k}" for k in np.repeat(np.arange(200), 3)])
    parts = partition(labels, "pathological", 5, 0, groups=groups, classes_per_client=4)
    assert (np.count_nonzero(label_counts(labels, parts, 10), axis=1) == 4).all()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_clients": 10}, r"= 10: there are 3 natural silos \(a-town, b-town, c-town\): set num-clients = 3$"),
        ({"test_silo": "b-town"}, r"= 3: there are 2 natural silos \(a-town, c-town\): set num-clients = 2"),
        ({"test_silo": "b-twon"}, r"test-silo = 'b-twon': no such silo: did you mean 'b-town'\? \(silos: a-town, b-"),
        ({"dataset": "digits"}, "partition = 'natural': dataset = 'digits' does not say which silo .* 'imagefolder'"),
        ({"dataset": "imagefolder", "partition": "iid", "test_silo": "x"}, "test-silo = 'x': acts with partition"),
        ({"dataset": "mnist", "partition": "iid", "group_column": "x"}, "group-column = 'x': acts with dataset = "),
    ],
)
def test_refused_with_the_fix(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_federation(config_of(**changes))


def test_a_group_in_two_places_is_refused() -> None:
    data = hospitals()
    moved = LabelledImages(data.images, data.labels, data.classes, data.silos, np.full(len(data), "7"))
    with pytest.raises(UserError, match=r"1 groups .* such as '7' at a-town, b-town, c-town: .* such as 'a-town-7'"):
        partition(moved.labels, "natural", 3, 0, silos=moved.silos, groups=moved.groups)
    with pytest.raises(UserError, match="no group is small enough"):
        split_test(moved, "", 0)
    single = LabelledImages(data.images, data.labels, data.classes)
    with pytest.raises(UserError, match="the images do not say which silo"):
        partition(single.labels, "natural", 3, 0, silos=single.silos)
    lost = data.subset(np.flatnonzero((data.silos == "a-town") | (data.silos == "c-town")))
    with pytest.raises(UserError, match="test-silo = 'a-town': no other silo has images of c"):
        split_test(lost, "a-town", 0)
    only = data.subset(np.flatnonzero(data.silos == "a-town"))
    with pytest.raises(UserError, match="it is the only silo"):
        split_test(only, "a-town", 0)


def test_groups_and_silos_do_not_change_the_fingerprint() -> None:
    data = hospitals()
    assert data.fingerprint() == LabelledImages(data.images, data.labels, data.classes).fingerprint()
    with pytest.raises(ValueError, match="groups must be text"):
        LabelledImages(data.images, data.labels, data.classes, data.silos, np.arange(len(data)))  # type: ignore[arg-type]


def test_natural_has_no_parameters_of_its_own() -> None:
    assert partition_parameters("natural") == ()
