"""Three real silos with models of their own, before the rounds of FedDDPM begin."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel
from flwr.app import ArrayRecord, Message
from hand_made_models import Model, answers, gather, near, send
from spoiled_answers import Tamper
from tiny_runs import tiny_settings

import clients.app
from fedsynth.api.in_process_grid import InProcessGrid
from fedsynth.config import Recipe, RunConfig
from fedsynth.data import load_federation
from fedsynth.diffusion import make_scheduler
from strategies import build_strategy
from strategies.averaging.base import AveragingStrategy
from strategies.averaging.fedddpm import FedDDPM
from strategies.base import Task
from strategies.conversation.exchange import Exchange
from strategies.conversation.meeting import take_census

AUX_SAMPLES, SERVER_STEPS, LEARNING_RATE = 50, 3, 1e-3


class WatchedExchange(Exchange):
    """Keeps what is sent and what comes back.

    Attributes:
        grid: may be told how to tamper.
        sent: all messages.
        answers: all answers.
    """

    def __init__(self, grid: InProcessGrid) -> None:
        super().__init__(grid, 60.0)
        self.grid = grid
        self.sent: list[Message] = []
        self.answers: list[Message] = []

    @property
    def kinds(self) -> Counter[str]:
        """Messages of every kind."""
        return Counter(message.metadata.message_type for message in self.sent)

    def send(self, messages: Iterable[Message], *how_long: Any) -> Iterator[tuple[int, Message]]:
        batch = list(messages)
        self.sent += batch
        for index, answer in super().send(batch, *how_long):
            self.answers.append(answer)
            yield index, answer


@dataclass
class TinySilos:
    """Three real silos of uneven sizes and classes, whose models are trained once a recipe, below ``folder``."""

    folder: Path

    def meet(self, tamper: Tamper = lambda replies: replies, **changes: Any) -> tuple[Task, WatchedExchange, FedDDPM]:
        """A run that has counted its silos; changes in snake case."""
        correction = {"aux_samples": AUX_SAMPLES, "server_steps": SERVER_STEPS}
        correction |= {"correction_learning_rate": LEARNING_RATE}
        uneven = {"partition": "dirichlet", "alpha": 0.5, "samples_per_client": 100}
        folder = self.folder / str(changes.get("recipe", "default"))
        settings = tiny_settings(folder, **{"strategy": "fedddpm", **correction, **uneven, **changes})
        strategy, config = build_strategy(RunConfig.from_run_config(settings))
        assert isinstance(strategy, FedDDPM)
        exchange = WatchedExchange(InProcessGrid(clients.app.app, settings, 3, tamper))
        federation = load_federation(config)
        census = take_census(exchange, exchange.get_node_ids(), federation.spec, config.exchange.max_silo_images)
        return Task(config, federation.spec, census, torch.arange(4), federation), exchange, strategy

    def begin(self, **changes: Any) -> tuple[Task, FedDDPM, ArrayRecord]:
        """A run that is about to begin its rounds."""
        task, exchange, strategy = self.meet(**changes)
        return task, strategy, strategy.begin(task, exchange)

    def own_model(self, silo: int) -> UNet2DModel:
        """The model of the default recipe on the silo's disk."""
        (folder,) = (self.folder / "default" / "state").glob(f"silo-{silo}/models/*/unet")
        return UNet2DModel.from_pretrained(folder, low_cpu_mem_usage=False).eval()


def diffusers_ddpm(recipe: Recipe, steps: int) -> DDPMScheduler:
    """Ancestral moves as diffusers makes them of what a network of the recipe predicts, at the levels of our own."""
    kinds = {"epsilon": "epsilon", "v": "v_prediction", "x0": "sample"}
    schedules = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
    scheduler = DDPMScheduler(
        recipe.num_train_timesteps,
        recipe.beta_start,
        recipe.beta_end,
        schedules[recipe.schedule],
        prediction_type=kinds[recipe.prediction],
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(timesteps=make_scheduler(recipe, steps).timesteps.tolist())
    return scheduler


def play_real(strategy: AveragingStrategy, number: int, weights: Model, loss: float = 1.0) -> tuple[Model, Any]:
    """A round in which the three silos answer weights of a real network."""
    requests = send(strategy, number, weights, [100, 101, 102])
    replies = answers(requests, [near(weights, 10 * number + k, 1e-3) for k in range(3)], [30, 1, 7], loss)
    return gather(strategy, number, replies)
