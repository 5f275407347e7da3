from __future__ import annotations

import hashlib
import io
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import cut, flipped
from safetensors.torch import save

from fedsynth.evaluation import DomainClassifier, extract_features, train_domain_classifier
from fedsynth.evaluation.cache import classifier_cached, extract_cached, scores_cached
from fedsynth.evaluation.networks.extractor import Extracted
from fedsynth.evaluation.networks.extractors import ClassifierExtractor, PixelExtractor
from fedsynth.evaluation.utility import Scores, utility_scores

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


def checksummed(shape: tuple[int, ...]) -> bytes:
    content = io.BytesIO()
    np.save(content, np.zeros(shape, np.float32))
    return content.getvalue() + hashlib.sha256(content.getvalue()).digest()


@pytest.mark.parametrize("damage", ["one bit", "emptied", "a whole file of fewer images", "a whole file of one column"])
def test_a_damaged_file_is_computed_again_and_mended(extractor, tmp_path, damage):
    whole = extract_cached(extractor, IMAGES, tmp_path)
    (path,) = tmp_path.rglob("*.npy")
    flipped = bytearray(path.read_bytes())
    flipped[-100] ^= 1
    shapes = {"a whole file of fewer images": (4, 74), "a whole file of one column": (5,)}
    path.write_bytes(checksummed(shapes[damage]) if damage in shapes else flipped if damage == "one bit" else b"")
    for _ in range(2):
        assert_same(extract_cached(extractor, IMAGES, tmp_path), whole)
    assert extractor.computed == 2


def test_answers_of_other_images_and_every_flipped_byte_are_computed_again(extractor, tmp_path):
    whole, other = (extract_cached(extractor, images, tmp_path) for images in (IMAGES, IMAGES[::-1]))
    paths = sorted(tmp_path.rglob("*.npy"))
    first, second = (path.read_bytes() for path in paths)
    paths[0].write_bytes(second)
    paths[1].write_bytes(first)
    for images, expected in ((IMAGES, whole), (IMAGES[::-1], other)):
        assert_same(extract_cached(extractor, images, tmp_path), expected)
    assert extractor.computed == 4
    count = 0
    for path in paths:
        for changed in (*flipped(path.read_bytes(), 20), *cut(path.read_bytes(), 5)):
            count += 1
            path.write_bytes(changed)
            assert_same(extract_cached(extractor, IMAGES, tmp_path), whole)
            assert_same(extract_cached(extractor, IMAGES[::-1], tmp_path), other)
    assert extractor.computed == 4 + count


def test_a_classifier_of_other_images_and_every_flipped_byte_are_trained_again(trainings, tmp_path):
    images, labels = LABELLED
    whole = classifier_cached(*LABELLED, 2, 0, tmp_path)
    classifier_cached(images, 1 - labels, 2, 0, tmp_path)
    paths = sorted(tmp_path.rglob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
    content = paths[0].read_bytes()
    for changed in (paths[1].read_bytes(), *flipped(content, 6)):
        paths[0].write_bytes(changed)
        assert_equal_weights(classifier_cached(*LABELLED, 2, 0, tmp_path), whole)
    assert len(trainings) == 2 + 1 + 8


def test_no_folder_keeps_nothing(extractor, trainings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        extract_cached(extractor, IMAGES, None)
        classifier_cached(*LABELLED, 2, 0, None)
    assert extractor.computed == len(trainings) == 2
    assert not [*Path().iterdir()]


def test_a_folder_that_cannot_be_written_costs_a_warning_alone(extractor, trainings, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "evaluation"
    with caplog.at_level(logging.WARNING, "fedsynth"):
        answers = [extract_cached(extractor, IMAGES, folder) for _ in range(2)]
        model = classifier_cached(*LABELLED, 2, 0, folder)
    assert_same(answers[0], extractor.extract(IMAGES))
    assert_equal_weights(model, classifier_cached(*LABELLED, 2, 0, None))
    # Once, however much could not be kept.
    assert [record.getMessage() for record in caplog.records] == [
        f"nothing is kept in {folder} (state-dir): Not a directory; going on without"
    ]


LABELLED = IMAGES, np.array([0, 1, 0, 1, 1])


def assert_equal_weights(one: DomainClassifier, other: DomainClassifier) -> None:
    assert one.state_dict().keys() == other.state_dict().keys()
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(tensor, other.state_dict()[name], rtol=0, atol=0)


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seed of every training, each of five steps."""
    seeds: list[int] = []

    def train(images: np.ndarray, labels: np.ndarray, num_classes: int, seed: int) -> DomainClassifier:
        seeds.append(seed)
        return train_domain_classifier(images, labels, num_classes, seed, steps=5)

    monkeypatch.setattr("fedsynth.evaluation.cache.train_domain_classifier", train)
    return seeds


def test_a_classifier_is_trained_once_and_comes_back_with_equal_weights(trainings, tmp_path):
    before = torch.get_rng_state()
    first, second = (classifier_cached(*LABELLED, 2, 3, tmp_path) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert trainings == [3]
    assert_equal_weights(first, second)
    assert_equal_weights(first, train_domain_classifier(*LABELLED, 2, 3, steps=5))
    assert not second.training
    np.testing.assert_array_equal(extract_features(first, IMAGES), extract_features(second, IMAGES))


def test_another_seed_label_image_or_number_of_classes_is_another_classifier(trainings, tmp_path):
    images, labels = LABELLED
    others = (images, labels, 2, 1), (images, 1 - labels, 2, 0), (images[::-1], labels, 2, 0), (images, labels, 3, 0)
    for count, arguments in enumerate([(images, labels, 2, 0), *others], start=1):
        classifier_cached(*arguments, tmp_path)
        assert len(trainings) == len([*tmp_path.rglob("*.safetensors")]) == count
    # The type of the labels is nothing that training sees.
    classifier_cached(images, labels.astype(np.int32), 2, 0, tmp_path)
    assert len(trainings) == 5


@pytest.mark.parametrize("damage", ["cut", "of another network", "not finite"])
def test_a_damaged_classifier_is_trained_again_and_mended(trainings, tmp_path, damage):
    whole = classifier_cached(*LABELLED, 2, 0, tmp_path)
    (path,) = tmp_path.rglob("*.safetensors")
    content = path.read_bytes()
    if damage == "of another network":
        content = save(DomainClassifier(1, 8, 3).state_dict())
    elif damage == "not finite":
        content = save({name: tensor * torch.nan for name, tensor in whole.state_dict().items()})
    path.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
    for _ in range(2):
        assert_equal_weights(classifier_cached(*LABELLED, 2, 0, tmp_path), whole)
    assert len(trainings) == 2


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for every time that scores were computed; the CNN trains for five steps."""
    times: list[str] = []

    def scores(*arguments: object) -> dict[str, Scores]:
        times.append("measured")
        return utility_scores(*arguments)

    monkeypatch.setattr("fedsynth.evaluation.utility.CNN_STEPS", 5)
    monkeypatch.setattr("fedsynth.evaluation.cache.utility_scores", scores)
    return times


SCORED = {
    "train_images": IMAGES,
    "train_labels": LABELLED[1],
    "test_images": IMAGES[::-1],
    "test_labels": LABELLED[1],
    "num_classes": 2,
    "seed": 3,
    "classifiers": ("logistic-regression", "cnn"),
    "num_seeds": 2,
}


def test_scores_are_measured_once_and_come_back_equal(measured, tmp_path):
    first, second = (scores_cached(tmp_path, **SCORED) for _ in range(2))
    assert len(measured) == 1
    assert first == second == utility_scores(**SCORED)
    # Whatever whole numbers the labels are, they are the same labels.
    small = {name: SCORED[name].astype(np.int16) for name in ("train_labels", "test_labels")}
    assert scores_cached(tmp_path, **{**SCORED, **small}) == first
    assert len(measured) == 1


def test_scores_of_anything_else_are_measured(measured, tmp_path, monkeypatch):
    other_labels = np.array([1, 1, 0, 0, 1])
    changes = {
        "train_images": IMAGES + 1,
        "train_labels": other_labels,
        "test_images": IMAGES,
        "test_labels": other_labels,
        "num_classes": 3,
        "seed": 4,
        "classifiers": ("cnn",),
        "num_seeds": 1,
    }
    scores_cached(tmp_path, **SCORED)
    for name, value in changes.items():
        scores_cached(tmp_path, **{**SCORED, name: value})
    monkeypatch.setattr("fedsynth.evaluation.utility.CNN_STEPS", 6)
    scores_cached(tmp_path, **SCORED)
    assert len(measured) == 1 + len(changes) + 1


def test_damaged_scores_are_measured_again_and_mended(measured, tmp_path):
    whole = scores_cached(tmp_path, **SCORED)
    (path,) = tmp_path.rglob("*.json")
    for changed in (b"", *flipped(path.read_bytes(), 4), *cut(path.read_bytes(), 2)):
        before = len(measured)
        path.write_bytes(changed)
        assert scores_cached(tmp_path, **SCORED) == scores_cached(tmp_path, **SCORED) == whole
        assert len(measured) == before + 1
