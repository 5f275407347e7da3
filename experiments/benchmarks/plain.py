"""The same work without Flower, in one process: what the federation is compared with."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from clients.models.local_model import LocalModel, load_network
from fedsynth.config import RunConfig, Scalar
from fedsynth.data import Federation, load_federation
from fedsynth.diffusion import (
    EncodedImages,
    TrainingState,
    codec_of,
    draw_initial_noise,
    initial_unet,
    make_scheduler,
    noise_predictor,
    train,
)
from fedsynth.diffusion.sampling import PredictNoise
from fedsynth.mixture import PathPosterior, compose, log_prior
from fedsynth.seeding import make_generator
from fedsynth.spec import ImageSpec


@dataclass
class PlainRun:
    """What one process did.

    Attributes:
        seconds: wall time of every round, or of as much work as per round holds.
        threads: torch threads it used.
        images: uint8 (N, H, W, C) of a cooperative inference.
        labels: int64 (N,).
    """

    seconds: list[float]
    threads: int
    images: NDArray[np.uint8] | None = None
    labels: NDArray[np.int64] | None = None


def cooperative_inference(settings: Mapping[str, Scalar], threads: int | None) -> PlainRun:
    """DfD with the class prior, posterior weights and ancestral moves, on models that a run has left on disk.

    Args:
        settings: configuration of that run, resolved.
        threads: torch threads; None: torch's default.
    """
    config = _begin(settings, threads)
    federation = load_federation(config)
    labels = torch.arange(config.sampling.num_samples) % len(federation.spec.classes)
    mixture = _Mixture(config, labels, federation)
    codec = codec_of(config, federation.spec)
    samples = draw_initial_noise(config.run.seed, len(labels), codec.shape)
    seconds = []
    for number in range(1, len(mixture.scheduler.timesteps) + 1):
        start = time.monotonic()
        samples = mixture.move(number, samples)
        seconds.append(time.monotonic() - start)
    return PlainRun(seconds, torch.get_num_threads(), codec.decode(samples), labels.numpy())


def training(settings: Mapping[str, Scalar], rounds: int, threads: int | None, patience: float = 60.0) -> PlainRun:
    """Train one model on the union of the silos' images, for as many steps per round as all silos make together.

    Args:
        settings: configuration of the federated run, resolved.
        rounds: rounds to match.
        threads: torch threads; None: torch's default.
        patience: seconds after which it stops early, with two stretches at least: threads that wait for each other on
            a busy machine can be fifty times slower than one.

    Returns:
        Seconds of every stretch of one silo's steps, scaled to all silos.
    """
    config = _begin(settings, threads)
    num_silos = config.run.num_clients
    images, labels, spec = _union(config)
    generator = make_generator(config.run.seed, "plain-training")
    steps = config.training.train_steps // int(settings["num-rounds"])
    total = rounds * num_silos * steps
    state = TrainingState(initial_unet(config, spec), config.recipe, generator, total)
    seconds, deadline = [], time.monotonic() + patience
    for number in range(1, rounds * num_silos + 1):
        start = time.monotonic()
        train(state, images, labels, config.training, number * steps)
        seconds.append(num_silos * (time.monotonic() - start))
        if number > 1 and time.monotonic() > deadline:
            break
    return PlainRun(seconds, torch.get_num_threads())


def _union(config: RunConfig) -> tuple[EncodedImages, torch.Tensor, ImageSpec]:
    federation = load_federation(config)
    silos = [federation.silo(k, config).train for k in range(config.run.num_clients)]
    codec = codec_of(config, federation.spec)
    images = EncodedImages(np.concatenate([silo.images for silo in silos]), codec)
    return images, torch.from_numpy(np.concatenate([silo.labels for silo in silos])), federation.spec


def _begin(settings: Mapping[str, Scalar], threads: int | None) -> RunConfig:
    if threads is not None:
        torch.set_num_threads(threads)
    return RunConfig.from_run_config(settings)


class _Mixture:
    """The silos' models and how they are weighed."""

    def __init__(self, config: RunConfig, labels: torch.Tensor, federation: Federation) -> None:
        self.seed, self.labels = config.run.seed, labels
        self.scheduler = make_scheduler(config.recipe, int(config.to_run_config()["dfd-rounds"]))
        silos = [federation.silo(k, config) for k in range(config.run.num_clients)]
        models = [LocalModel(s, federation.spec, config, Path(config.run.state_dir) / s.name) for s in silos]
        self.predict: list[PredictNoise] = [
            noise_predictor(load_network(model.folder, torch.device("cpu")), config.recipe) for model in models
        ]
        counts = torch.tensor(np.stack([silo.train.label_counts() for silo in silos]))
        prior = log_prior("class", counts, labels)
        self.posterior = PathPosterior(prior)
        self.rows = [torch.nonzero(~torch.isneginf(row)).squeeze(1) for row in prior]
        self.epsilon = torch.zeros((len(silos), len(labels), *codec_of(config, federation.spec).shape))

    def move(self, number: int, samples: torch.Tensor) -> torch.Tensor:
        """Move the samples one level: every silo's ε for its rows, the composed ε, the ancestral step."""
        timestep = int(self.scheduler.timesteps[number - 1])
        for k, rows in enumerate(self.rows):
            if len(rows):
                self.epsilon[k, rows] = self.predict[k](samples[rows], timestep, self.labels[rows])
        epsilon = compose(self.epsilon, self.posterior.weights)
        moved = torch.empty_like(samples)
        for cohort, label in enumerate(torch.unique(self.labels).tolist()):
            rows, generator = self.labels == label, make_generator(self.seed, "cooperative-noise", number - 1, cohort)
            step = self.scheduler.step(epsilon[rows], timestep, samples[rows], generator=generator)
            moved[rows] = step.prev_sample
        self.posterior.update(samples, moved, self.epsilon, self.scheduler, timestep)
        return moved
