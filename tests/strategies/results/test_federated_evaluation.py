"""The measurement at three real silos, over in a fraction of a second."""

from __future__ import annotations

import json
import logging
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
from fedsynth.api.in_process_grid import InProcessGrid
from fedsynth.config import RunConfig
from fedsynth.data import Silo, load_federation
from fedsynth.evaluation import FEATURE_SEED, DomainClassifier, frechet_distance
from fedsynth.evaluation import train_domain_classifier as train_fully
from fedsynth.evaluation.networks.domain_classifier import predict_labels
from fedsynth.evaluation.networks.random_features import RandomFeatures
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


def central_distance(silos: Iterable[Silo], run: Run) -> float:
    """Fréchet distance of the synthetic set to the images of some silos in one place."""
    real, synthetic = (RandomFeatures().extract(images).features for images in (union(silos), run.outcome.images))
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


def test_distance_is_that_of_all_images_in_one_place(done: SiloEvaluation, run: Run) -> None:
    assert [done.real[name].n for name in NAMES] == SIZES
    assert done.row()["silo-frechet-distance"] == pytest.approx(central_distance(run.silos, run), rel=1e-6)
    assert done.table()["silo-frechet-distance"]["N"] == sum(SIZES) == len(union(run.silos))


def test_accuracy_and_recall_are_those_of_the_held_out_images(
    done: SiloEvaluation, run: Run, classifier: DomainClassifier
) -> None:
    network = RandomFeatures()
    synthetic = network.extract(run.outcome.images).features.astype(np.float64)
    radii = np.sort(np.linalg.norm(synthetic[:, None] - synthetic, axis=2), axis=1)[:, 5]
    right, inside = [], []
    for silo, measures in zip(run.silos, done.held_out.values(), strict=True):
        held_out = network.extract(silo.holdout.images).features
        inside.append((np.linalg.norm(held_out[:, None] - synthetic, axis=2) <= radii).any(axis=1))
        right.append(predict_labels(classifier, silo.holdout.images) == silo.holdout.labels)
        assert measures.accuracy == right[-1].mean()
        assert measures.recall == inside[-1].mean()
    assert [len(of) for of in right] == HELD_OUT
    row = done.row()
    assert row["silo-accuracy"] == pytest.approx(np.concatenate(right).mean(), rel=1e-12)
    assert row["silo-recall"] == pytest.approx(np.concatenate(inside).mean(), rel=1e-12)
    assert done.table()["silo-recall"]["N"] == sum(HELD_OUT)
    assert 0.2 < row["silo-accuracy-lowest"] < row["silo-accuracy-highest"] < 1
    assert 0.2 < row["silo-recall"] < 1


def test_silos_answer_moments_and_counts_and_get_no_network_for_the_first(done: SiloEvaluation, run: Run) -> None:
    kinds = ["query.statistics"] * 3 + ["evaluate"] * 3
    assert [message.metadata.message_type for message in run.exchange.sent] == kinds
    for message, kind in zip(run.exchange.sent, kinds, strict=True):
        sent = transport.array_names(message)
        assert set(sent) == (set() if kind == "query.statistics" else {"weights", "arrays"})
        arrays = transport.array_record(message, "arrays") if sent else {}
        shapes = {key: (array.shape, array.dtype) for key, array in arrays.items()}
        assert shapes == ({"centres": ((90, 32), "float32"), "radii": ((90,), "float64")} if sent else {})
    for reply, kind in zip(run.exchange.answers, kinds, strict=True):
        assert reply.metadata.message_type == kind
        arrays = {name: transport.array_record(reply, name) for name in transport.array_names(reply)}
        shapes = {(name, key): array.shape for name, record in arrays.items() for key, array in record.items()}
        moments = {("arrays", "mean"): (32,), ("arrays", "products"): (32, 32)}
        assert shapes == (moments if kind == "query.statistics" else {})
        assert not [value for value in reply.content.metric_records["metrics"].values() if isinstance(value, list)]
        named = {"query.statistics": "extractor", "evaluate": "weights-hash"}[kind]
        assert set(reply.content.config_records["config"]) == {named}
        assert set(reply.content) - {"arrays#0"} == {"metrics", "config", "silo"}


def test_order_of_answers_and_half_precision_change_nothing(done: SiloEvaluation, tmp_path: Path) -> None:
    assert Run(tmp_path, lambda replies: replies[::-1]).measured().row() == done.row()
    assert Run(tmp_path, wire_dtype="float16").measured().row() == done.row()


def test_where_too_few_images_are_held_out_silos_are_named(
    done: SiloEvaluation, shared: Path, caplog: pytest.LogCaptureFixture
) -> None:
    measured = Run(shared, holdout_fraction=0.01).measured()
    assert set(measured.row()) == {"silo-frechet-distance", "silo-measures"}
    assert measured.notes == [f"Not in the silos' accuracy and recall: {', '.join(NAMES)}; the log says why."]
    for name in NAMES:
        assert f"{name}: UserError: holdout-fraction: fewer than 5 images are held out here" in caplog.text


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


def of_another_sum(reply: Message) -> Message:
    reply.content["metrics"]["wrong-inside"] += 1  # type: ignore[index,operator]
    return reply


def of_four(reply: Message) -> Message:
    for key in ("right-inside", "right-outside", "wrong-inside", "wrong-outside"):
        reply.content["metrics"][key] = 1  # type: ignore[index]
    reply.content["metrics"]["num-examples"] = 4  # type: ignore[index]
    return reply


def too_many(reply: Message) -> Message:
    reply.content["metrics"]["num-examples"] = 10**9  # type: ignore[index]
    if "right-inside" in reply.content["metrics"]:
        for key, value in zip(("right-inside", "right-outside", "wrong-inside"), (10**9, 0, 0), strict=True):
            reply.content["metrics"][key] = value  # type: ignore[index]
        reply.content["metrics"]["wrong-outside"] = 0  # type: ignore[index]
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
    shared: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    measured = Run(shared, spoil("query.statistics", change)).measured()
    assert list(measured.real) == ["silo-0", "silo-2"]
    assert measured.held_out == done.held_out
    (left,) = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert "silo-1" in left
    assert said in left
    expected = central_distance([run.silos[0], run.silos[2]], run)
    assert measured.row()["silo-frechet-distance"] == pytest.approx(expected, rel=1e-6)
    assert "Not in the silos' Fréchet distance: silo-1; the log says why." in measured.notes


@pytest.mark.parametrize(
    ("change", "said"),
    [(of_another_sum, "but the cells hold"), (of_four, "too few to say"), (too_many, "max-silo-images")],
)
def test_silo_with_bad_measures_is_left_out_of_them_alone(
    change: Change, said: str, done: SiloEvaluation, shared: Path, caplog: pytest.LogCaptureFixture
) -> None:
    measured = Run(shared, spoil("evaluate", change)).measured()
    assert measured.held_out == {name: done.held_out[name] for name in ("silo-0", "silo-2")}
    assert measured.row()["silo-frechet-distance"] == done.row()["silo-frechet-distance"]
    assert measured.row()["silo-measures"]["silo-1"] == {"images": 119, "noise": 0.0}
    assert measured.report_columns("silo-1") == {}
    (left,) = [record.getMessage() for record in caplog.records if "silo-1 left out: " in record.getMessage()]
    assert said in left
    assert "Not in the silos' accuracy and recall: silo-1; the log says why." in measured.notes


def test_whole_run_reports_the_measures_and_keeps_them_out_of_its_costs(shared: Path) -> None:
    with few_steps():
        folder = run_tiny(tiny_settings(shared, strategy="pooled", evaluate_silos=True, **UNEVEN))
    results, (row,) = json.loads(folder.results.read_text()), folder.read_metrics()
    page, log = folder.report.read_text(), folder.log.read_text()
    names = ("frechet-distance", "accuracy", "accuracy-lowest", "accuracy-highest", "recall", "measures")
    assert {key for key in results if key.startswith("silo-")} == {f"silo-{name}" for name in names}
    assert (results["bytes-up"], results["bytes-down"], results["rounds"]) == (row["bytes-up"], row["bytes-down"], 1)
    assert [results["silo-measures"][name]["images"] for name in NAMES] == SIZES
    assert [results["silo-measures"][name]["held-out-images"] for name in NAMES] == HELD_OUT
    assert "accuracy on its held-out images" in page
    assert page.count("random features, the same in every run") >= 2
    assert re.search(r"measured at the silos: [\d.]+ MB to them and 2[\d.]+ kB back, not in the costs", log)
    assert log.count("silo-frechet-distance") == 1
