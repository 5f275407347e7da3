"""The measurement at three real silos, over in a fraction of a second."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from flwr.app import Message
from tiny_runs import tiny_settings
from tiny_silos import WatchedExchange

import clients.app
import strategies.results.federated_evaluation
from experiments.in_process_grid import InProcessGrid
from fedsynth.config import RunConfig
from fedsynth.data import Silo, load_federation
from fedsynth.evaluation import FEATURE_SEED, DomainClassifier, extract_features, frechet_distance
from fedsynth.evaluation import train_domain_classifier as train_fully
from strategies.base import Outcome, Task
from strategies.conversation.meeting import take_census
from strategies.results.federated_evaluation import SiloEvaluation, evaluate_at_silos

Tamper = Callable[[list[Message]], list[Message]]
UNEVEN: dict[str, Any] = {"partition": "dirichlet", "alpha": 0.5, "samples_per_client": 100, "holdout_fraction": 0.3}
SIZES, HELD_OUT = [107, 119, 74], [33, 36, 23]
NAMES = ["silo-0", "silo-1", "silo-2"]
STEPS = 60


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

    def classifier(self) -> DomainClassifier:
        """That of the synthetic set, trained here once more."""
        return train_fully(self.outcome.images, self.outcome.labels, 10, FEATURE_SEED, steps=STEPS)


def union(silos: Iterable[Silo]) -> np.ndarray:
    """All images of some silos, held out or not."""
    return np.concatenate([part.images for silo in silos for part in (silo.train, silo.holdout)])


def central_distance(silos: Iterable[Silo], run: Run, classifier: DomainClassifier) -> float:
    """Fréchet distance of the synthetic set to the images of some silos in one place."""
    real, synthetic = (extract_features(classifier, images) for images in (union(silos), run.outcome.images))
    return frechet_distance(real, synthetic)
