from __future__ import annotations

import json
import logging
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_measurement import HELD_OUT, NAMES, SIZES, UNEVEN, Run, central_distance, few_steps, union
from tiny_runs import run_tiny, tiny_settings

from fedsynth.evaluation import DomainClassifier, extract_features
from fedsynth.evaluation.networks.domain_classifier import predict_labels
from fedsynth.messages import wire
from fedsynth.output import RunFolder
from strategies.results.federated_evaluation import SiloEvaluation


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def done(run: Run) -> SiloEvaluation:
    return run.measured()


@pytest.fixture(scope="module")
def classifier(run: Run) -> DomainClassifier:
    return run.classifier()


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


def test_no_answer_is_of_the_size_of_images(done: SiloEvaluation, run: Run) -> None:
    answers = {wire.STATISTICS: run.inner.answers[:3], wire.EVALUATE: run.inner.answers[3:6]}
    for kind, replies in answers.items():
        for reply in replies:
            assert reply.metadata.message_type == kind
            arrays = {name: wire.array_record(reply, name) for name in wire.array_names(reply)}
            shapes = {(name, key): array.shape for name, record in arrays.items() for key, array in record.items()}
            sums = {(wire.ARRAYS, wire.TOTAL): (64,), (wire.ARRAYS, wire.PRODUCTS): (64, 64)}
            assert shapes == (sums if kind == wire.STATISTICS else {})
            lists = [value for value in wire.metrics(reply).values() if isinstance(value, list)]
            assert [len(values) for values in lists] == ([] if kind == wire.STATISTICS else [10, 10])
            texts = {key: value for key, value in wire.config(reply).items() if key != "weights-hash"}
            assert texts == {}
            assert set(reply.content) - {"arrays#0"} <= {wire.METRICS, wire.CONFIG, wire.SILO}
    assert len(run.inner.answers) == 6


def test_classifier_crosses_once_and_synthetic_images_never(done: SiloEvaluation, run: Run) -> None:
    assert run.inner.kinds[wire.STATISTICS] == run.inner.kinds[wire.EVALUATE] == 3
    assert [wire.WEIGHTS in wire.array_names(message) for message in run.inner.sent] == [True] * 3 + [False] * 3
    for message in run.inner.sent:
        (array,) = wire.array_record(message, wire.ARRAYS).values()
        assert (array.shape, array.dtype) in [((64,), "float64"), ((90, 64), "float32")]


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


def test_sets_of_single_silos_are_not_measured(shared: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = Run(shared)
    run.outcome = replace(run.outcome, owners=np.arange(90) % 3)
    assert run.measure() is None
    assert run.inner.sent == []
    assert "each has a synthetic set of its own" in caplog.text


def test_set_that_cannot_be_measured_costs_the_measurement_only(shared: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = Run(shared)
    run.outcome = replace(run.outcome, images=run.outcome.images[:1], labels=run.outcome.labels[:1])
    assert run.measure() is None
    assert "measurement at the silos given up: " in caplog.text


def read(folder: RunFolder) -> dict[str, Any]:
    return dict(json.loads(folder.results.read_text()))


def test_whole_run_reports_the_measures_and_keeps_them_out_of_its_costs(shared: Path) -> None:
    settings = tiny_settings(shared, strategy="pooled", **UNEVEN)
    without = read(run_tiny({**settings, "run-name": "without"}, report=False))
    with few_steps():
        folder = run_tiny({**settings, "run-name": "with", "evaluate-silos": True})
    results, page, log = read(folder), folder.report.read_text(), folder.log.read_text()
    names = ("frechet-distance", "accuracy", "accuracy-lowest", "accuracy-highest", "coverage", "measures")
    assert results.keys() - without.keys() == {f"silo-{name}" for name in names}
    assert [results[key] for key in ("bytes-down", "rounds")] == [without[key] for key in ("bytes-down", "rounds")]
    # The silos' seconds have more digits or fewer from run to run.
    assert results["bytes-up"] == pytest.approx(without["bytes-up"], rel=0.01)
    assert [results["silo-measures"][name]["images"] for name in NAMES] == SIZES
    assert [results["silo-measures"][name]["held-out-images"] for name in NAMES] == HELD_OUT
    assert "accuracy on its held-out images" in page
    assert page.count("features of a classifier of the synthetic set") >= 2
    assert "cannot be compared with those of another set" in page
    assert re.search(r"measured at the silos: [\d.]+ MB to them and 10[\d.]+ kB back, not in the costs", log)
    assert log.count("silo-frechet-distance") == 1
