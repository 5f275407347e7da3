"""The measurement at three real silos, over in a fraction of a second."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from flwr.app import Message
from spoiled_answers import Tamper, failed, spoil
from tiny_runs import run_tiny, tiny_settings
from tiny_silos import WatchedExchange

import clients.app
import strategies.results.federated_evaluation
from experiments.in_process_grid import InProcessGrid
from fedsynth.config import RunConfig
from fedsynth.data import Silo, load_federation
from fedsynth.evaluation import FEATURE_SEED, DomainClassifier, extract_features, frechet_distance
from fedsynth.evaluation import train_domain_classifier as train_fully
from fedsynth.evaluation.networks.domain_classifier import predict_labels
from fedsynth.messages import transport
from strategies.base import Outcome, Task
from strategies.conversation.meeting import take_census
from strategies.results.federated_evaluation import SiloEvaluation, evaluate_at_silos

UNEVEN: dict[str, Any] = {"partition": "dirichlet", "alpha": 0.5, "samples_per_client": 100, "holdout_fraction": 0.3}
SIZES, HELD_OUT = [107, 119, 74], [33, 36, 23]
NAMES = ["silo-0", "silo-1", "silo-2"]
STEPS = 60
Change = Callable[[Message], Message]


@contextmanager
def few_steps() -> Iterator[None]:
    """Train the classifier in a tenth of the time."""
    short = partial(train_fully, steps=STEPS)
    with mock.patch.object(strategies.results.federated_evaluation, "train_domain_classifier", short):
        yield


class Run:
    """Three real silos of uneven size, and a server that has digits 0 to 6 of its own and no federation."""

    def __init__(self, folder: Path, tamper: Tamper = lambda replies: replies, **changes: Any) -> None:
        settings = tiny_settings(folder, **{**UNEVEN, **changes})
        config = RunConfig.from_run_config(settings)
        federation = load_federation(config)
        self.silos: list[Silo] = [federation.silo(k, config) for k in range(3)]
        self.exchange = WatchedExchange(InProcessGrid(clients.app.app, settings, 3))
        nodes, most = self.exchange.get_node_ids(), config.exchange.max_silo_images
        census = take_census(self.exchange, nodes, federation.spec, most)
        self.exchange.sent, self.exchange.answers, self.exchange.grid._tamper = [], [], tamper
        self.task = Task(config, federation.spec, census, torch.arange(90) % 10, federation=None)
        rows = np.flatnonzero(federation.test.labels < 7)[:90]
        self.outcome = Outcome(federation.test.images[rows], federation.test.labels[rows])

    def measure(self) -> SiloEvaluation | None:
        with few_steps():
            return evaluate_at_silos(self.exchange, self.task, self.outcome)

    def measured(self) -> SiloEvaluation:
        done = self.measure()
        assert done is not None
        return done


def union(silos: Iterable[Silo]) -> np.ndarray:
    """All images of some silos, held out or not."""
    return np.concatenate([part.images for silo in silos for part in (silo.train, silo.holdout)])


def central_distance(silos: Iterable[Silo], run: Run, classifier: DomainClassifier) -> float:
    """Fréchet distance of the synthetic set to the images of some silos in one place."""
    real, synthetic = (extract_features(classifier, images) for images in (union(silos), run.outcome.images))
    return frechet_distance(real, synthetic)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def done(run: Run) -> SiloEvaluation:
    return run.measured()


@pytest.fixture(scope="module")
def classifier(run: Run) -> DomainClassifier:
    """That of the synthetic set, trained here once more."""
    return train_fully(run.outcome.images, run.outcome.labels, 10, FEATURE_SEED, steps=STEPS)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(autouse=True)
def info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fedsynth")


def test_distance_is_that_of_all_images_in_one_place(
    done: SiloEvaluation, run: Run, classifier: DomainClassifier
) -> None:
    assert [done.real[name].n for name in NAMES] == SIZES
    assert done.row()["silo-frechet-distance"] == pytest.approx(central_distance(run.silos, run, classifier), rel=1e-6)
    assert done.table()["silo-frechet-distance"]["N"] == sum(SIZES) == len(union(run.silos))


def test_accuracy_and_coverage_are_those_of_the_held_out_images(
    done: SiloEvaluation, run: Run, classifier: DomainClassifier
) -> None:
    synthetic = extract_features(classifier, run.outcome.images).astype(np.float64)
    right, covered = [], []
    for silo, measures in zip(run.silos, done.held_out.values(), strict=True):
        held_out, train = (extract_features(classifier, of.images) for of in (silo.holdout, silo.train))
        real = np.concatenate([held_out, train]).astype(np.float64)
        radii = np.sort(np.linalg.norm(real[: len(held_out), None] - real, axis=2), axis=1)[:, 5:6]
        to_synthetic = np.linalg.norm(real[: len(held_out), None] - synthetic, axis=2)
        covered.append((to_synthetic <= radii).any(axis=1))
        right.append(predict_labels(classifier, silo.holdout.images) == silo.holdout.labels)
        assert measures.accuracy == right[-1].mean()
        assert measures.coverage == covered[-1].mean()
        assert list(measures.label_counts) == silo.holdout.label_counts().tolist()
        assert list(measures.label_correct) == np.bincount(silo.holdout.labels[right[-1]], minlength=10).tolist()
    assert [len(of) for of in right] == HELD_OUT
    row, accuracies = done.row(), [of.mean() for of in right]
    assert row["silo-accuracy"] == pytest.approx(np.concatenate(right).mean(), rel=1e-12)
    assert row["silo-coverage"] == pytest.approx(np.concatenate(covered).mean(), rel=1e-12)
    assert (row["silo-accuracy-lowest"], row["silo-accuracy-highest"]) == (min(accuracies), max(accuracies))
    assert 0.2 < row["silo-accuracy-lowest"] < row["silo-accuracy-highest"] < 1
    assert 0.2 < row["silo-coverage"] < 1


def test_silos_answer_sums_and_counts_and_see_no_synthetic_image(done: SiloEvaluation, run: Run) -> None:
    kinds = ["query.statistics"] * 3 + ["evaluate"] * 3
    assert [message.metadata.message_type for message in run.exchange.sent] == kinds
    assert ["weights" in transport.array_names(message) for message in run.exchange.sent] == [True] * 3 + [False] * 3
    for message in run.exchange.sent:
        (array,) = transport.array_record(message, "arrays").values()
        assert (array.shape, array.dtype) in [((64,), "float64"), ((90, 64), "float32")]
    for reply, kind in zip(run.exchange.answers, kinds, strict=True):
        assert reply.metadata.message_type == kind
        arrays = {name: transport.array_record(reply, name) for name in transport.array_names(reply)}
        shapes = {(name, key): array.shape for name, record in arrays.items() for key, array in record.items()}
        sums = {("arrays", "total"): (64,), ("arrays", "products"): (64, 64)}
        assert shapes == (sums if kind == "query.statistics" else {})
        lists = [value for value in reply.content.metric_records["metrics"].values() if isinstance(value, list)]
        assert [len(values) for values in lists] == ([] if kind == "query.statistics" else [10, 10])
        assert set(reply.content.config_records["config"]) == {"weights-hash"}
        assert set(reply.content) - {"arrays#0"} == {"metrics", "config", "silo"}


def test_order_of_answers_and_half_precision_change_nothing(done: SiloEvaluation, tmp_path: Path) -> None:
    assert Run(tmp_path, lambda replies: replies[::-1]).measured().row() == done.row()
    assert Run(tmp_path, wire_dtype="float16").measured().row() == done.row()


def test_small_silos_are_named_and_left_out(
    done: SiloEvaluation, shared: Path, caplog: pytest.LogCaptureFixture
) -> None:
    measured = Run(shared, min_statistics_samples=75).measured()
    assert list(measured.real) == ["silo-0", "silo-1"]
    assert measured.held_out == done.held_out
    assert "silo-2 left out: 74 images are too few, min-statistics-samples = 75" in caplog.text


def test_where_every_silo_is_too_small_there_is_no_number(shared: Path, caplog: pytest.LogCaptureFixture) -> None:
    measured = Run(shared, min_statistics_samples=1000, holdout_fraction=0.01).measured()
    assert measured.row() == {"silo-measures": {name: {} for name in NAMES}}
    assert measured.table() == {}
    assert len(measured.notes) == 2
    for name, size in zip(NAMES, SIZES, strict=True):
        assert f"{name} left out: {size} images are too few" in caplog.text
        assert f"{name} left out: {math.ceil(size / 100)} images are too few, least number to hold out" in caplog.text


def test_set_that_cannot_be_measured_costs_the_measurement_only(shared: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = Run(shared)
    whole, run.outcome = run.outcome, replace(run.outcome, owners=np.arange(90) % 3)
    assert run.measure() is None
    assert run.exchange.sent == []
    assert "each has a synthetic set of its own" in caplog.text
    run.outcome = replace(whole, images=whole.images[:1], labels=whole.labels[:1])
    assert run.measure() is None
    assert "measurement at the silos given up: " in caplog.text


def negated(reply: Message) -> Message:
    """Sums that no images have."""
    sums = transport.decode_tensors(transport.array_record(reply, "arrays"))
    reply.content["arrays"] = transport.encode_tensors({**sums, "products": -sums["products"]})
    return reply


def of_one_class(reply: Message) -> Message:
    for key in ("label-counts", "label-correct"):
        reply.content["metrics"][key] = [36]  # type: ignore[index]
    return reply


def too_many(reply: Message) -> Message:
    reply.content["metrics"]["num-examples"] = 10**9  # type: ignore[index]
    return reply


@pytest.mark.parametrize(
    ("change", "said"),
    [(negated, "not positive semi-definite"), (too_many, "max-silo-images"), (failed, "no power")],
)
def test_silo_with_bad_statistics_is_left_out_of_the_distance_alone(
    change: Change,
    said: str,
    done: SiloEvaluation,
    run: Run,
    classifier: DomainClassifier,
    shared: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    measured = Run(shared, spoil("query.statistics", change)).measured()
    assert list(measured.real) == ["silo-0", "silo-2"]
    assert measured.held_out == done.held_out
    (left,) = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert "silo-1" in left
    assert said in left
    expected = central_distance([run.silos[0], run.silos[2]], run, classifier)
    assert measured.row()["silo-frechet-distance"] == pytest.approx(expected, rel=1e-6)
    assert "Not in the silos' Fréchet distance: silo-1; the log says why." in measured.notes


@pytest.mark.parametrize(("change", "said"), [(of_one_class, "do not fit 10 classes"), (too_many, "max-silo-images")])
def test_silo_with_bad_measures_is_left_out_of_them_alone(
    change: Change, said: str, done: SiloEvaluation, shared: Path, caplog: pytest.LogCaptureFixture
) -> None:
    measured = Run(shared, spoil("evaluate", change)).measured()
    assert measured.held_out == {name: done.held_out[name] for name in ("silo-0", "silo-2")}
    assert measured.row()["silo-frechet-distance"] == done.row()["silo-frechet-distance"]
    assert measured.row()["silo-measures"]["silo-1"] == {"images": 119}
    assert measured.report_columns("silo-1") == {}
    (left,) = [record.getMessage() for record in caplog.records if "silo-1 left out: " in record.getMessage()]
    assert said in left
    assert "Not in the silos' accuracy and coverage: silo-1; the log says why." in measured.notes


def test_whole_run_reports_the_measures_and_keeps_them_out_of_its_costs(shared: Path) -> None:
    with few_steps():
        folder = run_tiny(tiny_settings(shared, strategy="pooled", evaluate_silos=True, **UNEVEN))
    results, (row,) = json.loads(folder.results.read_text()), folder.read_metrics()
    page, log = folder.report.read_text(), folder.log.read_text()
    names = ("frechet-distance", "accuracy", "accuracy-lowest", "accuracy-highest", "coverage", "measures")
    assert {key for key in results if key.startswith("silo-")} == {f"silo-{name}" for name in names}
    assert (results["bytes-up"], results["bytes-down"], results["rounds"]) == (row["bytes-up"], row["bytes-down"], 1)
    assert [results["silo-measures"][name]["images"] for name in NAMES] == SIZES
    assert [results["silo-measures"][name]["held-out-images"] for name in NAMES] == HELD_OUT
    assert "accuracy on its held-out images" in page
    assert page.count("features of a classifier of the synthetic set") >= 2
    assert "cannot be compared with those of another set" in page
    assert re.search(r"measured at the silos: [\d.]+ MB to them and 10[\d.]+ kB back, not in the costs", log)
    assert log.count("silo-frechet-distance") == 1
