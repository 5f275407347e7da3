"""Three real silos with models of their own, before the rounds of FedDDPM begin."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from flwr.app import ArrayRecord, Message
from hand_made_models import Model, answers, gather, near, send
from tiny_runs import tiny_settings

import clients.app
from experiments.in_process_grid import InProcessGrid
from fedsynth.config import RunConfig
from fedsynth.data import load_federation
from fedsynth.messages import wire
from strategies import build_strategy
from strategies.averaging.base import AveragingStrategy
from strategies.averaging.fedddpm import FedDDPM
from strategies.base import Task
from strategies.conversation.census import take_census

AUX_SAMPLES, SERVER_STEPS, LEARNING_RATE = 50, 3, 1e-3

Tamper = Callable[[list[Message]], list[Message]]


class WatchedGrid(InProcessGrid):
    """Also counts the messages of every kind."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.kinds: Counter[str] = Counter()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        batch = list(messages)
        self.kinds.update(message.metadata.message_type for message in batch)
        return super().push_messages(batch)


@dataclass
class TinySilos:
    """Three real silos of uneven sizes and classes, whose models are trained once in ``folder``."""

    folder: Path

    def meet(self, tamper: Tamper = lambda replies: replies, **changes: Any) -> tuple[Task, WatchedGrid, FedDDPM]:
        """A run that has counted its silos; changes in snake case."""
        correction = {
            "aux_samples": AUX_SAMPLES,
            "server_steps": SERVER_STEPS,
            "correction_learning_rate": LEARNING_RATE,
        }
        uneven = {"partition": "dirichlet", "alpha": 0.5, "samples_per_client": 100}
        settings = tiny_settings(self.folder, **{"strategy": "fedddpm", **correction, **uneven, **changes})
        strategy, config = build_strategy(RunConfig.from_run_config(settings))
        assert isinstance(strategy, FedDDPM)
        grid = WatchedGrid(clients.app.app, settings, 3, tamper)
        federation = load_federation(config)
        census = take_census(grid, list(grid.get_node_ids()), federation.spec, 60.0, config.exchange.max_silo_images)
        return Task(config, federation.spec, census, torch.arange(4), federation), grid, strategy

    def begin(self, **changes: Any) -> tuple[Task, FedDDPM, ArrayRecord]:
        """A run that is about to begin its rounds."""
        task, grid, strategy = self.meet(**changes)
        return task, strategy, strategy.begin(task, grid)

    def own_model(self, silo: int) -> UNet2DModel:
        """The model on the silo's disk."""
        (folder,) = (self.folder / "state").glob(f"silo-{silo}/models/*/unet")
        return UNet2DModel.from_pretrained(folder, low_cpu_mem_usage=False).eval()


def play_real(
    strategy: AveragingStrategy, number: int, weights: Model, loss: float = 1.0, order: int = 1
) -> tuple[Model, Any]:
    """A round in which the three silos answer weights of a real network, in the order of arrival ``order``."""
    requests = send(strategy, number, weights, [100, 101, 102])
    replies = answers(requests, [near(weights, 10 * number + k, 1e-3) for k in range(3)], [30, 1, 7])
    for reply in replies:
        wire.metrics(reply)["loss"] = loss
    return gather(strategy, number, replies[::order])
