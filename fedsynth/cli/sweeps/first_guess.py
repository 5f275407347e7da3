"""What a run will take, guessed from a moment of its own work: some training steps and predictions of its network."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from fedsynth.config import RunConfig
from fedsynth.config.methods import AveragingSettings, DfDSettings, FedDDPMPlusSettings, FedDDPMSettings
from fedsynth.diffusion import TrainingState, codec_of, initial_unet, network_settings, noise_predictor, pick_device
from fedsynth.diffusion import train as train_network
from fedsynth.message_size import NETWORK_BATCH
from fedsynth.plugins import is_plugin
from fedsynth.policy import plan_of
from fedsynth.seeding import make_generator
from fedsynth.spec import ImageSpec
from fedsynth.threads import one_thread

AROUND = 45.0
"""Seconds of a run besides training and drawing: start, evaluation and report, as the default run has them on two
cores (``docs/results/speed.md``)."""
BUDGET = 5.0
"""CPU seconds of measuring after which networks that have not been measured yet are left out."""
_REPEATS, _LONG = 3, 1.0
_OF_ANOTHER_KIND = ("ddsa", "dp-sum")
"""Strategies whose steps are not those that are measured."""


@dataclass(frozen=True)
class Speed:
    """What a network takes on one thread of this machine, or on its GPU.

    Attributes:
        step: seconds of a training step.
        prediction: seconds of one noise prediction, of one image.
    """

    step: float
    prediction: float


@dataclass(frozen=True)
class Work:
    """What a run does, one after the other; what silos do at the same time counts once.

    Attributes:
        steps: training steps.
        predictions: noise predictions, each of one image.
    """

    steps: float
    predictions: float


class FirstGuess:
    """Guesses what runs will take, and measures each network once.

    Args:
        measure: measures a run's network.
        clock: seconds of CPU.
    """

    def __init__(
        self,
        measure: Callable[[RunConfig, ImageSpec], Speed] | None = None,
        clock: Callable[[], float] = time.process_time,
    ) -> None:
        self._measure, self._clock = measure or measured_speed, clock
        self._known: dict[str, Speed] = {}
        self._left = BUDGET

    def seconds(self, config: RunConfig, spec: ImageSpec) -> float | None:
        """Return what a run will take; None: its steps are of a kind that is not measured, or the time is up."""
        work = work_of(config, spec, silos_at_once(config))
        speed = None if work is None else self._speed(config, spec)
        if work is None or speed is None:
            return None
        return AROUND + work.steps * speed.step + work.predictions * speed.prediction

    def _speed(self, config: RunConfig, spec: ImageSpec) -> Speed | None:
        batches = (config.training.batch_size, min(config.sampling.num_samples, NETWORK_BATCH))
        key = repr((network_settings(config, spec), spec, batches, config.recipe, config.run.device))
        if key not in self._known and self._left > 0:
            start = self._clock()
            self._known[key] = self._measure(config, spec)
            self._left -= self._clock() - start
        return self._known.get(key)


def silos_at_once(config: RunConfig) -> int:
    """Return how many simulated silos of a run work side by side on this machine; those on one GPU wait in turn."""
    if pick_device(config.run.device).type == "cuda":
        return 1
    return min(config.run.num_clients, os.cpu_count() or 1)


def work_of(config: RunConfig, spec: ImageSpec, at_once: int) -> Work | None:
    """Return what a run does; None of a plug-in, a private run, a large public model and few labels.

    Args:
        config: the run's.
        spec: format and classes of its images.
        at_once: silos that work side by side.
    """
    name, settings, silos = config.run.strategy, config.settings, config.run.num_clients
    if is_plugin(name) or name in _OF_ANOTHER_KIND or config.private or config.model.base_model:
        return None
    if isinstance(settings, AveragingSettings):
        silos = min(silos, max(int(settings.fraction_train * silos), settings.min_train_nodes))
    turns, plan = math.ceil(silos / at_once), plan_of(config, spec)
    drawn = config.sampling.num_samples * config.sampling.sampling_steps
    predictions: float = drawn
    if isinstance(settings, DfDSettings):
        predictions = turns * settings.dfd_rounds * settings.parallel_levels * config.sampling.num_samples
    elif name == "local":
        predictions = turns * drawn
    elif name == "pooled":
        predictions = drawn / at_once
    return Work(turns * plan.optimiser_steps + _steps_of_the_server(config), predictions)


def _steps_of_the_server(config: RunConfig) -> int:
    settings = config.settings
    if config.run.strategy == "centralised":
        return config.train_steps
    if isinstance(settings, FedDDPMSettings):
        once = isinstance(settings, FedDDPMPlusSettings) and settings.correct_once
        return settings.server_steps * (1 if once else settings.num_rounds)
    return config.sampling.generator_steps if config.run.strategy in ("dfd", "pooled") else 0


def measured_speed(config: RunConfig, spec: ImageSpec) -> Speed:
    """Train a run's network for a few steps on noise, and have it predict noise: the fastest of some repeats of each.

    Raises:
        UserError: the network or the device cannot be had.
    """
    codec, generator = codec_of(config, spec), make_generator(config.run.seed, "first-guess")
    unet = initial_unet(config, spec).to(pick_device(config.run.device))
    batch = config.training.batch_size
    images = torch.rand((batch, *codec.shape), generator=generator) * 2 - 1
    labels = torch.arange(batch) % len(spec.classes)
    state = TrainingState(unet, config.recipe, generator, 1000)
    rows = min(config.sampling.num_samples, NETWORK_BATCH)
    x = torch.randn((rows, *codec.shape), generator=generator)
    classes = torch.arange(rows) % len(spec.classes)
    predict = noise_predictor(unet, config.recipe, codec.bound)
    # Of a processor its own seconds: what else the machine does now, it may not do during the run.
    clock = time.monotonic if unet.device.type == "cuda" else time.process_time
    with one_thread():
        step = _fastest(lambda: train_network(state, images, labels, config.training, state.steps + 1), clock)
        prediction = _fastest(lambda: predict(x, config.recipe.num_train_timesteps // 2, classes), clock)
    return Speed(step, prediction / rows)


def _fastest(work: Callable[[], object], clock: Callable[[], float]) -> float:
    """Return the seconds of the fastest of some repeats after a first one, and of long work of the first one."""
    start, best = clock(), math.inf
    for _ in range(1 + _REPEATS):
        before = clock()
        work()
        best = min(best, clock() - before)
        if clock() - start > _LONG:
            break
    return best
