"""The same work without Flower, in one process: what the federation is compared with."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from clients.models.local_model import LocalModel, load_network
from fedsynth.api.in_process_run import begin_run
from fedsynth.config import RunConfig, Scalar
from fedsynth.config.methods import DfDSettings
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
from fedsynth.mixture.screening import bound_weights
from fedsynth.output import RunFolder, SyntheticDataset, write_dataset, write_report
from fedsynth.seeding import make_generator
from fedsynth.spec import ImageSpec
from strategies.base import Outcome
from strategies.results.measure import measure_run
from strategies.results.summary import report_content
from strategies.run.phases import Phases


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
    """DfD with the class prior and posterior weights, on models that a run has left on disk.

    Recipe, codec, sampler and levels are the run's. Nothing is screened.

    Args:
        settings: configuration of that run, resolved.
        threads: torch threads; None: torch's default.
    """
    config = _begin(settings, threads)
    return _cooperate(config, load_federation(config))


def whole_run(settings: Mapping[str, Scalar], threads: int | None, folder: Path) -> tuple[PlainRun, dict[str, float]]:
    """DfD from training to report: what ``fedsynth run`` does, without Flower.

    Measuring asks the silos' models for noise predictions, for which silos answer in this process.

    Args:
        settings: configuration of that run, resolved.
        threads: torch threads; None: torch's default.
        folder: for models and the run folder; empty.

    Returns:
        The cooperative inference, and seconds by phase.
    """
    config = _begin({**settings, "state-dir": str(folder / "models")}, threads)
    phases = Phases()
    federation = load_federation(config)
    phases.enter("training")
    for model in _local_models(config, federation):
        model.train_slice(math.inf)
        model.copied_share()
    phases.enter("rounds")
    done = _cooperate(config, federation)
    assert done.images is not None
    assert done.labels is not None
    phases.enter("sampling")
    run_folder = RunFolder.create(folder, "plain")
    dataset = SyntheticDataset(done.images, done.labels, federation.spec.classes, {"method": "plain"})
    write_dataset(dataset, run_folder.synthetic)
    phases.enter("evaluation")
    run, outcome = begin_run(config.to_run_config(), federation), Outcome(done.images, done.labels)
    measured = measure_run(run.exchange, run.task, outcome, {"": (done.images, done.labels)})
    phases.enter("report")
    write_report(run_folder.report, report_content(run.task, outcome, "", {"rounds": len(done.seconds)}, measured, []))
    return done, phases.so_far()


def _cooperate(config: RunConfig, federation: Federation) -> PlainRun:
    labels = torch.arange(config.sampling.num_samples) % len(federation.spec.classes)
    mixture = PlainMixture(config, labels, federation)
    codec = codec_of(config, federation.spec)
    samples = draw_initial_noise(config.run.seed, len(labels), codec.shape)
    seconds = []
    for level in range(mixture.num_levels):
        start = time.monotonic()
        samples = mixture.move(level, samples)
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


def _local_models(config: RunConfig, federation: Federation) -> list[LocalModel]:
    silos = [federation.silo(k, config) for k in range(config.run.num_clients)]
    return [LocalModel(silo, federation.spec, config, Path(config.run.state_dir) / silo.name) for silo in silos]


def _begin(settings: Mapping[str, Scalar], threads: int | None) -> RunConfig:
    if threads is not None:
        torch.set_num_threads(threads)
    return RunConfig.from_run_config(settings)


class PlainMixture:
    """The silos' models, and how they are weighed; a sampler for the samples of each class."""

    def __init__(self, config: RunConfig, labels: torch.Tensor, federation: Federation) -> None:
        self.seed, self.labels, recipe = config.run.seed, labels, config.recipe
        codec = codec_of(config, federation.spec)
        settings = cast(DfDSettings, config.settings)
        folders = [model.folder for model in _local_models(config, federation)]
        self.predict: list[PredictNoise] = [
            noise_predictor(load_network(folder, torch.device("cpu")), recipe, codec.bound) for folder in folders
        ]
        silos = [federation.silo(k, config).train for k in range(config.run.num_clients)]
        counts = torch.tensor(np.stack([silo.label_counts() for silo in silos]))
        prior = bound_weights(log_prior("class", counts, labels).exp(), settings.max_silo_weight).log()
        self.rows = [torch.nonzero(~torch.isneginf(row)).squeeze(1) for row in prior]
        self.epsilon = torch.zeros((len(folders), len(labels), *codec.shape))
        self.classes = [torch.nonzero(labels == label).squeeze(1) for label in torch.unique(labels).tolist()]
        self.posteriors = [PathPosterior(prior[:, rows]) for rows in self.classes]
        self.schedulers = [
            make_scheduler(recipe, settings.dfd_rounds, settings.sampler, codec.bound) for _ in self.classes
        ]

    @property
    def num_levels(self) -> int:
        """Moves from noise to images."""
        return len(self.schedulers[0].timesteps)

    def move(self, level: int, samples: torch.Tensor) -> torch.Tensor:
        """Move the samples one level: every silo's ε for its rows, and for each class the composed ε and a step."""
        timestep = int(self.schedulers[0].timesteps[level])
        for k, rows in enumerate(self.rows):
            if len(rows):
                self.epsilon[k, rows] = self.predict[k](samples[rows], timestep, self.labels[rows])
        moved = torch.empty_like(samples)
        for number, (rows, scheduler, posterior) in enumerate(
            zip(self.classes, self.schedulers, self.posteriors, strict=True)
        ):
            epsilon, generator = self.epsilon[:, rows], make_generator(self.seed, "cooperative-noise", level, number)
            composed = compose(epsilon, posterior.weights)
            moved[rows] = scheduler.step(composed, timestep, samples[rows], generator=generator).prev_sample
            posterior.update(samples[rows], moved[rows], epsilon, scheduler, timestep)
        return moved
