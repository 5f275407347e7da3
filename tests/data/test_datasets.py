from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets
from sklearn.datasets import load_digits

from fedsynth.config import RunConfig, Scalar, idle_keys
from fedsynth.data import DATASETS, Origins, load_dataset, load_federation
from fedsynth.data.cifar100 import SUPERCLASSES
from fedsynth.errors import UserError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
MEMBERS = {"medmnist": "medmnist:bloodmnist"}
needs_mnist = pytest.mark.skipif(not (SHARED / "MNIST" / "raw").is_dir(), reason="no MNIST in ../shared/data")
needs_cifar = pytest.mark.skipif(not (SHARED / "CIFAR10-images").is_dir(), reason="no CIFAR10-images in ../shared/data")


def test_digits_split_covers_the_source() -> None:
    train, test = load_dataset("digits")
    assert train.images.shape == (1437, 8, 8, 1)
    assert test.images.shape == (360, 8, 8, 1)
    source = load_digits()
    counts = np.bincount(source.target)
    assert (train.label_counts() + test.label_counts()).tolist() == counts.tolist()
    assert np.abs(test.label_counts() - counts * 360 / 1797).max() < 1
    grey = (source.data * 255 / 16 + 0.5).astype(int)
    loaded = np.concatenate([train.images, test.images]).reshape(1797, 64).tolist()
    labels = [*train.labels.tolist(), *test.labels.tolist()]
    assert sorted(zip(labels, loaded, strict=True)) == sorted(zip(source.target.tolist(), grey.tolist(), strict=True))


def test_digits_are_the_same_for_every_seed() -> None:
    assert load_dataset("digits", seed=1)[1].fingerprint() == load_dataset("digits", seed=2)[1].fingerprint()


def test_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown dataset 'minst': did you mean 'mnist'\?"):
        load_dataset("minst")


@pytest.mark.parametrize("name", [MEMBERS.get(name, name) for name in DATASETS if name != "digits"])
def test_data_root_is_needed_and_must_hold_the_data(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"dataset '{name}' needs data-root"):
        load_dataset(name)
    with pytest.raises(UserError, match=str(tmp_path)) as caught:
        load_dataset(name, tmp_path)
    assert ("download=true" in str(caught.value)) == ("download" not in idle_keys({"dataset": name, "download": True}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("option", "value"), [("image_size", 0), ("channels", 2)])
def test_formats_out_of_range_name_their_key(option: str, value: int) -> None:
    with pytest.raises(UserError, match=f"{option.replace('_', '-')} = {value}"):
        load_dataset("digits", **{option: value})  # type: ignore[arg-type]


@needs_mnist
def test_mnist_is_padded_kept_or_resized() -> None:
    train, test = load_dataset("mnist", SHARED)
    reference = torchvision.datasets.MNIST(str(SHARED), train=False)
    assert train.images.shape == (15000, 32, 32, 1)
    assert test.classes == tuple("0123456789")
    assert test.labels.tolist() == reference.targets.tolist()
    assert (test.images[:, 2:-2, 2:-2, 0] == reference.data.numpy()).all()
    assert test.images.sum(dtype=np.int64) == reference.data.numpy().sum(dtype=np.int64)
    small = load_dataset("mnist", SHARED, image_size=28)[1]
    assert (small.images[..., 0] == reference.data.numpy()).all()


@needs_mnist
def test_mnist_damaged_file_is_a_user_error(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for source in (SHARED / "MNIST" / "raw").iterdir():
        (raw / source.name).write_bytes(source.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"MNIST is missing or damaged: put the four"):
        load_dataset("mnist", tmp_path)


@pytest.fixture
def idx_root(tmp_path: Path) -> Path:
    """A tiny Fashion-MNIST: four training images, two test images."""
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, count in (("train", 4), ("t10k", 2)):
        images = np.arange(count, dtype=np.uint8).repeat(28 * 28)
        head = [count.to_bytes(4, "big")]
        size = (28).to_bytes(4, "big")
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + head[0] + size * 2 + images.tobytes())
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + head[0] + bytes(range(count)))
    return tmp_path


def test_fashion_mnist_class_names_can_be_folders(idx_root: Path) -> None:
    train, test = load_dataset("fashion-mnist", idx_root, image_size=28)
    assert train.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert test.labels.tolist() == [0, 1]
    assert train.classes[0] == "T-shirt-top"
    assert not any("/" in name for name in train.classes)


def test_cifar10_in_torchvision_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8)
    for name in ("data_batch_1", "test_batch"):
        (folder / name).write_bytes(pickle.dumps({"data": pixels.reshape(3, -1), "labels": [2, 0, 1]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["plane", "car", "bird"]}))
    # The checksums of the real files cannot fit a fixture.
    source = torchvision.datasets.CIFAR10
    monkeypatch.setattr(source, "train_list", [["data_batch_1", None]])
    monkeypatch.setattr(source, "test_list", [["test_batch", None]])
    monkeypatch.setattr(source, "meta", {**source.meta, "md5": None})
    train, test = load_dataset("cifar10", tmp_path)
    assert train.labels.tolist() == [2, 0, 1]
    assert train.classes == ("plane", "car", "bird")
    assert (test.images == pixels.transpose(0, 2, 3, 1)).all()


# The superclass of every class, in the order of the files, which is alphabetical for both.
COARSE = """4 1 14 8 0 6 7 7 18 3 3 14 9 18 7 11 3 9 7 11 6 11 5 10 7 6 13 15 3 15 0 11 1 10 12 14 16 9 11 5 5 19 8 8 15
13 14 17 18 10 16 4 17 4 2 0 17 4 18 17 10 3 2 12 12 16 12 1 9 19 2 10 0 1 16 12 9 13 15 13 16 19 2 4 6 19 5 5 8 19 18 1
2 15 6 0 17 8 14 13"""


@pytest.fixture
def cifar100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny CIFAR-100: every class once in training and test."""
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    names = sorted(SUPERCLASSES)
    for seed, name in enumerate(("train", "test")):
        pixels = np.random.default_rng(seed).integers(0, 256, (100, 3 * 32 * 32), dtype=np.uint8)
        content = {"data": pixels, "fine_labels": [*range(50, 100), *range(50)]}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names}))
    with pytest.raises(UserError, match="CIFAR100 is missing or damaged: put the folder cifar-100-python/ in"):
        load_dataset("cifar100", tmp_path)
    # The checksums of the real files cannot fit a fixture.
    source = torchvision.datasets.CIFAR100
    monkeypatch.setattr(source, "train_list", [["train", None]])
    monkeypatch.setattr(source, "test_list", [["test", None]])
    monkeypatch.setattr(source, "meta", {**source.meta, "md5": None})
    return tmp_path


def test_cifar100_in_torchvision_layout(cifar100: Path) -> None:
    train, test = load_dataset("cifar100", cifar100)
    assert train.labels.tolist() == [*range(50, 100), *range(50)]
    assert (train.classes[0], train.classes[-1], train.silos) == ("apple", "worm", None)
    pixels = np.random.default_rng(1).integers(0, 256, (100, 3 * 32 * 32), dtype=np.uint8)
    assert (test.images == pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)).all()


def test_cifar100_superclasses_are_its_natural_silos(cifar100: Path) -> None:
    superclasses = sorted(set(SUPERCLASSES.values()))
    assert [superclasses.index(SUPERCLASSES[name]) for name in sorted(SUPERCLASSES)] == [*map(int, COARSE.split())]
    keys: dict[str, Scalar] = {"dataset": "cifar100", "data-root": str(cifar100), "partition": "natural"}
    federation = load_federation(RunConfig.from_run_config({**keys, "num-clients": 20}))
    assert federation.silo_names == tuple(superclasses)
    train = federation.train
    for name, part in zip(federation.silo_names, federation.parts, strict=True):
        assert [SUPERCLASSES[train.classes[label]] for label in train.labels[part]] == [name] * 5
    with pytest.raises(UserError, match="silo-column = 'coarse': of cifar100 it is 'coarse_label', or left out"):
        load_dataset("cifar100", cifar100, origins=Origins(natural=True, silo_column="coarse"))
    with pytest.raises(UserError, match="group-column = 'patient': cifar100 has no groups"):
        load_dataset("cifar100", cifar100, origins=Origins(group_column="patient"))


@needs_cifar
@pytest.mark.parametrize("name", ["cifar10", "imagefolder"])
def test_cifar10_in_image_folder_layout(name: str) -> None:
    train, test = load_dataset(name, SHARED / "CIFAR10-images")
    assert train.images.shape == (5000, 32, 32, 3)
    assert test.label_counts().tolist() == [100] * 10
    reference = torchvision.datasets.ImageFolder(str(SHARED / "CIFAR10-images" / "test"))
    assert test.classes == tuple(reference.classes)
    assert (test.images[17] == np.asarray(reference[17][0])).all()


def test_failed_download_says_what_to_do_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", offline)
    with pytest.raises(UserError, match=r"CIFAR10 could not be fetched \(no route to host\): put the folder"):
        load_dataset("cifar10", tmp_path, download=True)
